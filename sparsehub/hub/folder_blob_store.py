"""FolderBlobStore: a blob store in a local folder, in which other programs may have changed anything."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock
from obstore.store import LocalStore

from sparsehub.errors import HubError, NotFoundError
from sparsehub.files import fsync, write_file
from sparsehub.hub.blob_store import BlobStore
from sparsehub.hub.documents import Token

if TYPE_CHECKING:
    from sparsehub.hub.transfer import Meter

LOCK_FILE = ".lock"
# obstore writes `path#1` and links it to `path`; a killed writer leaves the first behind.
STAGING = re.compile(r".*#\d+", re.DOTALL)


class FolderBlobStore(BlobStore):
    """Objects in a folder that other programs may have changed: no symbolic link is followed, no pipe is opened.

    `prepare` makes the folder; every other method raises `NotFoundError` where there is none.
    """

    requests = 4
    remote = False

    def __init__(self, root: Path):
        super().__init__(lambda: LocalStore(root), str(root))
        self.root = root

    def prepare(self) -> None:
        with self.errors_at(self.where):
            if not self.root.is_dir():
                self.root.mkdir(parents=True, exist_ok=True)
                fsync(self.root.parent)

    def create(self, path: str, data: bytes) -> bool:
        with self._durable(path):
            return super().create(path, data)

    def send(self, path: str, file: Path, digest: str, meter: Meter) -> None:
        with self._durable(path):
            super().send(path, file, digest, meter)

    def changed(self, path: str) -> datetime | None:
        self._check(path)
        with self.errors_at(path):
            try:
                return datetime.fromtimestamp((self.root / path).lstat().st_mtime, UTC)
            except FileNotFoundError:
                return None

    def stream(self, path: str, start: int = 0, stop: int | None = None) -> tuple[int, Iterator[bytes]] | None:
        self._check(path)
        return super().stream(path, start, stop)

    def read_versioned(self, path: str, limit: int) -> tuple[bytes, Token] | None:
        """The version is the content: a folder has no other."""
        self._check(path)
        found = super().read_versioned(path, limit)
        return None if found is None else (found[0], found[0])

    def replace(self, path: str, data: bytes, token: Token | None) -> bool:
        """Folders have no conditional write, so a writer holds the hub's lock, which ends with its process."""
        if token is None:
            return self.create(path, data)
        self._check(path)
        with self.errors_at(path), FileLock(self.root / LOCK_FILE):
            with (self.root / path).open("rb") as file:
                found = file.read(len(token) + 1)
            if found == token:
                write_file(self.root / path, data)
            return bool(found == token)

    def folders(self, path: str) -> list[str]:
        return [entry.name for entry in self._scan(path) if entry.is_dir(follow_symlinks=False) or entry.is_symlink()]

    def files(self, path: str) -> list[str]:
        return [entry.name for entry in self._scan(path) if not entry.is_dir(follow_symlinks=False)]

    def ages(self, path: str) -> Iterator[tuple[str, int, datetime]]:
        """What killed writers left behind included."""
        self._check(path)
        with self.errors_at(path), suppress(FileNotFoundError), os.scandir(self.root / path) as entries:
            for entry in entries:
                status = entry.stat(follow_symlinks=False)
                if stat.S_ISREG(status.st_mode):
                    yield f"{path}/{entry.name}", status.st_size, datetime.fromtimestamp(status.st_mtime, UTC)

    def refresh(self, path: str, data: bytes) -> None:
        self._check(path)
        with self.errors_at(path):
            os.utime(self.root / path)

    def delete(self, path: str) -> None:
        self._check(path)
        with self.errors_at(path):
            (self.root / path).unlink(missing_ok=True)

    def _scan(self, path: str) -> list[os.DirEntry[str]]:
        """The entries of a folder. obstore refuses to list one that holds an odd file name, so it is not asked."""
        self._check(path)
        with self.errors_at(path):
            try:
                with os.scandir(self.root / path) as entries:
                    return sorted((e for e in entries if not STAGING.fullmatch(e.name)), key=lambda e: e.name)
            except FileNotFoundError:
                return []

    @contextmanager
    def _durable(self, path: str) -> Iterator[None]:
        """Sync what is written in a block to the disk: obstore does not."""
        with self.errors_at(path):
            self._check(path)
            yield
            for part in (self.root, *self._parts(path)):  # all of them: an earlier writer may have been killed
                fsync(part)

    def _check(self, path: str) -> None:
        """Raises `NotFoundError` without a hub, and `HubError` where `path` leads through a link or a special file."""
        if not self.root.is_dir():
            raise NotFoundError(f"there is no hub at {self.root}", fix="check the path, or publish a package there")
        with self.errors_at(path):
            for part in self._parts(path):
                mode = part.lstat().st_mode if os.path.lexists(part) else stat.S_IFREG
                if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                    found = "a symbolic link" if stat.S_ISLNK(mode) else "a special file"
                    raise HubError(f"{part} is not a plain file", found=found, fix="remove it from the hub")

    def _parts(self, path: str) -> list[Path]:
        """The folders from the root's children down to the object, then the object."""
        steps = path.split("/")
        return [self.root.joinpath(*steps[: depth + 1]) for depth in range(len(steps))]
