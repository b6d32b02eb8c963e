"""Small documents that an endpoint follows while it runs: a file, or an object of a hub."""

from __future__ import annotations

import fcntl
import logging
import threading
from collections.abc import Callable
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from sparsehub.errors import ConflictError, SparsehubError, UsageError
from sparsehub.files import write_file
from sparsehub.hub.backend import Token
from sparsehub.hub.blob_store import BlobStore
from sparsehub.hub.retry import wait_before

log = logging.getLogger("sparsehub")
MAX_BYTES = 4 << 20
ATTEMPTS = 12  # of a change that others come before
NOTHING_YET: Any = object()


class Document(Protocol):
    """Bytes that are replaced whole, by compare-and-swap. Raises `HubError` or `UsageError`
    where it cannot be reached."""

    where: str

    def read(self) -> tuple[bytes, Token] | None:
        """The content and what `replace` knows it by; None where there is none yet."""

    def replace(self, data: bytes, token: Token | None) -> bool:
        """Write it where there is still what `token` stands for, None for nothing; False otherwise."""


class FileDocument:
    """A file, or a link to one as Kubernetes mounts it. Its token is its content."""

    def __init__(self, path: Path, private: bool = False):
        """private: only its owner may read it."""
        self.path, self.where, self._private = path, str(path), private

    def read(self) -> tuple[bytes, Token] | None:
        with self._errors():
            try:
                with self.path.open("rb") as file:
                    data = file.read(MAX_BYTES + 1)
            except FileNotFoundError:
                return None
        if len(data) > MAX_BYTES:
            raise UsageError(f"{self.where} is too large", expected=f"at most {MAX_BYTES} bytes")
        return data, data

    def replace(self, data: bytes, token: Token | None) -> bool:
        with self._errors():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with (self.path.parent / f".{self.path.name}.lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                found = self.read()
                if (None if found is None else found[1]) != token:
                    return False
                write_file(self.path.resolve(), data)
                if self._private:
                    self.path.chmod(0o600)
                return True

    @contextmanager
    def _errors(self) -> Any:
        try:
            yield
        except OSError as error:
            raise UsageError(
                f"{self.where} cannot be used", found=str(error), fix="check the path and its rights"
            ) from error


class ObjectDocument:
    """An object in a hub's store."""

    def __init__(self, objects: BlobStore, path: str):
        self._objects, self._path, self.where = objects, path, f"{objects.where}/{path}"

    def read(self) -> tuple[bytes, Token] | None:
        return self._objects.read_versioned(self._path, MAX_BYTES)

    def replace(self, data: bytes, token: Token | None) -> bool:
        self._objects.prepare()
        return self._objects.replace(self._path, data, token)


def change(document: Document, edit: Callable[[bytes | None], bytes]) -> bytes:
    """Change a document by compare-and-swap: `edit` sees it as it is at that moment, and again after each race.

    Returns what is written. Raises what `edit` raises, and `ConflictError` where others always come before.
    """
    for attempt in range(ATTEMPTS):
        found = document.read()
        data = edit(None if found is None else found[0])
        if document.replace(data, None if found is None else found[1]):
            return data
        wait_before(min(attempt, 2))
    raise ConflictError(f"{document.where} is changed by others all the time", fix="try again")


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
