"""Google Cloud Storage over real HTTP, as far as obstore speaks it: its XML interface is S3's, conditions apart.

moto keeps the objects. What is added is what Google does otherwise: every write gives an object a new generation, and
`x-goog-if-generation-match` writes only where there is still that one, 0 for none.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.hub_servers import s3

BUCKET = s3.BUCKET
_CHANGED = b"<?xml version='1.0'?><Error><Code>PreconditionFailed</Code></Error>"
# moto reads S3's form alone, and believes it.
_SIGNED = "AWS4-HMAC-SHA256 Credential=key/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"
Start = Callable[..., Any]
Application = Callable[[dict[str, Any], Start], Iterable[bytes]]


def google(moto: Application) -> Application:
    """moto with generations. One request after the other, as `s3` has it."""
    numbers, generations = itertools.count(1), dict[str, int]()

    def application(environment: dict[str, Any], start: Start) -> Iterable[bytes]:
        method, path, query = (environment[name] for name in ("REQUEST_METHOD", "PATH_INFO", "QUERY_STRING"))
        environment["HTTP_AUTHORIZATION"] = _SIGNED
        wanted = environment.pop("HTTP_X_GOOG_IF_GENERATION_MATCH", None)
        if wanted is not None and int(wanted) != generations.get(path, 0):
            start("412 Precondition Failed", [("Content-Length", str(len(_CHANGED)))])
            return [_CHANGED]

        def numbered(status: str, headers: list[tuple[str, str]], *more: Any) -> Any:
            written = (method == "PUT" and "partNumber" not in query) or (method == "POST" and "uploadId" in query)
            if status.startswith("2") and written:
                generations[path] = next(numbers)
            if status.startswith("2") and method == "DELETE":
                generations.pop(path, None)
            return start(status, [*headers, ("x-goog-generation", str(generations.get(path, 0)))], *more)

        return moto(environment, numbered)

    return application


@contextmanager
def served() -> Iterator[str]:
    """A Google with one empty bucket in a thread of this process; gives its address."""
    with s3.served(google) as address:
        yield address


def credentials(address: str, folder: Path) -> Path:
    """A service account's file that names this server and asks nobody for a token."""
    path = folder / "google.json"
    account = {"client_email": "", "private_key": "", "private_key_id": ""}
    path.write_text(json.dumps({"gcs_base_url": address, "disable_oauth": True, **account}))
    return path
