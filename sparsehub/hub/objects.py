"""Write-once objects under paths: an obstore store, with what a folder needs on top."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import LocalStore, ObjectStore

from sparsehub.errors import HubError, IntegrityError, NotFoundError
from sparsehub.files import CHUNK, fsync

# obstore writes `path#1` and links it to `path`; a killed writer leaves the first behind.
_STAGING = re.compile(r".*#\d+", re.DOTALL)


class Objects:
    """Objects of an obstore store. Each is created whole, once, and never written again."""

    def __init__(self, store: Callable[[], ObjectStore]):
        self._store = store

    def create(self, path: str, data: bytes) -> bool:
        """Write an object; False where there is one already, which is left alone. Durable when it returns."""
        with _hub_errors(path):
            try:
                obstore.put(self._store(), path, data, mode="create")
            except AlreadyExistsError:
                return False
            return True

    def stream(self, path: str) -> tuple[int, Iterator[bytes]] | None:
        """Size as the store states it, and the bytes in chunks of about 1 MiB; None where there is no such object."""
        with _hub_errors(path):
            try:
                answer = obstore.get(self._store(), path)
            except FileNotFoundError:
                return None
        return answer.meta["size"], _chunks(path, answer.stream(min_chunk_size=CHUNK))

    def read(self, path: str, limit: int) -> bytes | None:
        """A small object whole; None where there is none; raises `IntegrityError` beyond `limit` bytes."""
        answer = self.stream(path)
        if answer is None:
            return None
        size, data = answer[0], bytearray()
        for chunk in answer[1] if size <= limit else ():
            data += chunk
            if len(data) > limit:
                break
        if max(size, len(data)) > limit:
            raise IntegrityError(
                f"{path} in the hub is too large", found=f"{max(size, len(data))} bytes", expected=f"at most {limit}"
            )
        return bytes(data)

    def folders(self, path: str) -> list[str]:
        """The names of the folders right under `path`, sorted; none where there is no such folder."""
        with _hub_errors(path):
            answer = obstore.list_with_delimiter(self._store(), path)
        return sorted(prefix.rpartition("/")[2] for prefix in answer["common_prefixes"])

    def files(self, path: str) -> list[str]:
        """The names of the objects right under `path`, sorted; none where there is no such folder."""
        with _hub_errors(path):
            answer = obstore.list_with_delimiter(self._store(), path)
        return sorted(entry["path"].rpartition("/")[2] for entry in answer["objects"])


class FolderObjects(Objects):
    """Objects in a folder, which anybody may have touched: no symbolic link is followed, no pipe is opened.

    The folder is made by the first write; reading where there is none raises `NotFoundError`.
    """

    def __init__(self, root: Path):
        super().__init__(lambda: LocalStore(root))
        self.root = root

    def create(self, path: str, data: bytes) -> bool:
        with _hub_errors(path):
            if not self.root.is_dir():
                self.root.mkdir(parents=True, exist_ok=True)
                fsync(self.root.parent)
            self._check(path)
            created = super().create(path, data)
            for part in (self.root, *self._parts(path)):  # obstore does not fsync; a writer before us may have died
                fsync(part)
            return created

    def stream(self, path: str) -> tuple[int, Iterator[bytes]] | None:
        self._check(path)
        return super().stream(path)

    def folders(self, path: str) -> list[str]:
        return [entry.name for entry in self._scan(path) if entry.is_dir(follow_symlinks=False) or entry.is_symlink()]

    def files(self, path: str) -> list[str]:
        return [entry.name for entry in self._scan(path) if not entry.is_dir(follow_symlinks=False)]

    def _scan(self, path: str) -> list[os.DirEntry[str]]:
        """obstore refuses to list a folder that holds one odd file name, so it is read without it."""
        self._check(path)
        with _hub_errors(path):
            try:
                with os.scandir(self.root / path) as entries:
                    return sorted((e for e in entries if not _STAGING.fullmatch(e.name)), key=lambda e: e.name)
            except FileNotFoundError:
                return []

    def _check(self, path: str) -> None:
        """Raises `NotFoundError` without a hub, and `HubError` where the way to `path` is not plain."""
        if not self.root.is_dir():
            raise NotFoundError(f"there is no hub at {self.root}", fix="check the path, or publish a package there")
        with _hub_errors(path):
            for part in self._parts(path):
                mode = part.lstat().st_mode if os.path.lexists(part) else stat.S_IFREG
                if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                    found = "a symbolic link" if stat.S_ISLNK(mode) else "a special file"
                    raise HubError(f"{part} is not a plain file", found=found, fix="remove it from the hub")

    def _parts(self, path: str) -> list[Path]:
        """The folders from the root's children down to the object, then the object."""
        steps = path.split("/")
        return [self.root.joinpath(*steps[: depth + 1]) for depth in range(len(steps))]


@contextmanager
def _hub_errors(path: str) -> Iterator[None]:
    try:
        yield
    except (BaseError, OSError) as error:
        problem = str(error).partition("\n")[0]  # the lines after it are for obstore's developers
        raise HubError(
            f"the hub failed at {path}", found=problem, fix="check the hub's folder and permissions"
        ) from error


def _chunks(path: str, stream: Iterator[bytes]) -> Iterator[bytes]:
    with _hub_errors(path):
        yield from stream
