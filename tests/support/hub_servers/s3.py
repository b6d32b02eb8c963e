"""moto's S3 over real HTTP. S3 decides one conditional write after the other, moto needs a lock for it."""

from __future__ import annotations

import logging
import threading
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

BUCKET = "bucket"


@contextmanager
def served(dialect: Callable[[Any], Any] = lambda moto: moto) -> Iterator[str]:
    """An S3 with one empty bucket in a thread of this process; gives its address. dialect: goes around moto."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    moto, lock = dialect(DomainDispatcherApplication(create_backend_app)), threading.Lock()

    def application(environment: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        with lock:
            return list(moto(environment, start))

    server = make_server("127.0.0.1", 0, application, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.port}"
    urllib.request.urlopen(urllib.request.Request(f"{address}/{BUCKET}", method="PUT")).close()
    try:
        yield address
    finally:
        server.shutdown()
