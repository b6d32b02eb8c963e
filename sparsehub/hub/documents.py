"""Small documents that are changed by compare-and-swap: the channels of a hub, an endpoint's catalogue and its keys.

Nothing here needs torch or obstore: the command line changes documents too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock

from sparsehub.errors import ConflictError, UsageError
from sparsehub.files import write_file
from sparsehub.hub.retry import wait_before

MAX_DOCUMENT_BYTES = 4 << 20
ATTEMPTS = 12  # to write a change before others change the document once more
Token = Any
"""The version of a document that was read (an ETag, a commit, the bytes): only the document itself looks into it."""
Edit = Callable[[bytes | None], bytes | None]
"""From what a document holds, None where there is none yet, to what it shall hold; None leaves it alone."""


class Document(Protocol):
    """Bytes that are replaced whole, and only where nobody else has replaced them meanwhile.

    Raises `HubError` or `UsageError` where it cannot be reached.
    """

    where: str  # for messages

    def read(self) -> tuple[bytes, Token] | None:
        """The content and its version; None where there is no document yet."""

    def replace(self, data: bytes, token: Token | None) -> bool:
        """Write it if its version is still `token`, None for no document yet; False where it is another by now."""


class FileDocument:
    """A file, or a link to one as Kubernetes mounts it. Its version is its content."""

    def __init__(self, path: Path, private: bool = False):
        """private: only its owner may read it."""
        self.path, self.where, self._private = path, str(path), private

    def read(self) -> tuple[bytes, Token] | None:
        with self._errors():
            try:
                with self.path.open("rb") as file:
                    data = file.read(MAX_DOCUMENT_BYTES + 1)
            except FileNotFoundError:
                return None
        if len(data) > MAX_DOCUMENT_BYTES:
            raise UsageError(f"{self.where} is too large", expected=f"at most {MAX_DOCUMENT_BYTES} bytes")
        return data, data

    def replace(self, data: bytes, token: Token | None) -> bool:
        with self._errors():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self.path.parent / f".{self.path.name}.lock"):
                found = self.read()
                if (None if found is None else found[1]) != token:
                    return False
                write_file(self.path.resolve(), data)
                if self._private:
                    self.path.chmod(0o600)
                return True

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UsageError(
                f"{self.where} cannot be used", found=str(error), fix="check the path and its rights"
            ) from error


def change(document: Document, edit: Edit) -> bytes | None:
    """Change a document: `edit` is given its content as it is at that moment, and once more after each lost race.

    Returns what the document holds now. Raises what `edit` raises, and `ConflictError` when every race was lost.
    """
    for attempt in range(ATTEMPTS):
        found = document.read()
        content, token = (None, None) if found is None else found
        data = edit(content)
        if data is None or document.replace(data, token):
            return content if data is None else data
        wait_before(min(attempt, 2))
    problem = f"{document.where} could not be changed: others keep changing it, or it cannot be reached"
    raise ConflictError(problem, fix="try again")
