"""Watcher: applies every new content of a document (the catalogue, the key file) while an endpoint runs."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from sparsehub.errors import SparsehubError
from sparsehub.hub.documents import Document

log = logging.getLogger("sparsehub")
NOTHING_YET: Any = object()


class Watcher:
    """Hands every new content of a document to `apply`, in a thread of its own, until `stop`.

    What cannot be read, and what `apply` refuses by raising one of our errors, is logged once and kept in `error`;
    whatever held before holds on.
    """

    def __init__(
        self,
        document: Document,
        apply: Callable[[bytes | None], None],
        seconds: float = 2.0,
        tidy: Callable[[], None] = lambda: None,
    ):
        """seconds: between two looks; tidy: called after each of them."""
        self._document, self._apply, self._seconds, self._tidy = document, apply, seconds, tidy
        self.error: SparsehubError | None = None
        self._seen: Any = NOTHING_YET
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sparsehub-follow", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(self._seconds)

    def look(self) -> None:
        """Read the document now, and apply it where it is new; raises what went wrong."""
        with self._lock:
            try:
                found = self._document.read()
                data = None if found is None else found[0]
                if data != self._seen:
                    self._seen = data
                    self._apply(data)
                    self.error = None
            except SparsehubError as error:
                self._note(error)
                raise

    def _note(self, error: SparsehubError) -> None:
        if self.error is None or str(error) != str(self.error):
            log.error("%s is not followed: %s", self._document.where, error)
        self.error = error

    def _run(self) -> None:
        while not self._stop.wait(self._seconds):
            try:
                with suppress(SparsehubError):
                    self.look()
                self._tidy()
            except Exception:
                log.exception("%s could not be followed; the next look may", self._document.where)
