"""PackageCache: packages on this machine, shared by all processes of a user, bounded in size.

packages/<hex>   whole packages by their digest: a folder appears when everything in it is validated
partial/<hex>    what an interrupted fetch has downloaded already
locks/<hex>      held while a package is read (shared) or fetched and removed (alone); a lock dies with its process
validated/<hex>  the files of a package as they were when hashed: validation_cache.py; it goes with its package
damaged/         copies that were found changed, kept so that the cause can be found
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from sparsehub.errors import FormatError, HubError, UsageError
from sparsehub.files import TEMPORARY_PREFIX, cache_root, write_file
from sparsehub.hub.package_hub import PackageHub
from sparsehub.hub.resolver import Resolved
from sparsehub.hub.transfer import Progress
from sparsehub.hub.validation_cache import VALIDATED, record_fetched, record_of

LIMIT = 10 << 30  # bytes, where the settings do not say otherwise
ATTEMPTS = 5
ABANDONED = 3600.0  # seconds after which an unfinished file is taken for one that a killed process left
PACKAGES, PARTIAL, LOCKS, DAMAGED = "packages", "partial", "locks", "damaged"
log = logging.getLogger("sparsehub")


@dataclass(frozen=True)
class CachedPackage:
    """An entry of the cache: a package, a partial download or a damaged copy."""

    path: Path
    size: int  # bytes
    used: float  # when it was last read, in seconds since the epoch


class PackageCache:
    """The cache in one folder. limit: in bytes; the least recently used are evicted, never one that is being read."""

    def __init__(self, root: Path | None = None, limit: int = LIMIT):
        self.root, self.limit = root or cache_root(), limit

    def holds(self, digest: str) -> bool:
        """Whether a package is in the cache, valid or not."""
        return self._folder(digest).is_dir()

    @contextmanager
    def package(self, resolved: Resolved, hub: PackageHub, progress: Progress | None = None) -> Iterator[Path]:
        """The folder of a package, which is not evicted during the block; it is fetched first where it is not here.

        It was valid when it was fetched; the caller validates it again, and calls `set_aside` where that fails.
        """
        lock = self._lock_package(resolved, hub, progress)
        try:
            folder = self._folder(resolved.digest)
            with suppress(PermissionError):  # another user's, who shares the cache
                os.utime(folder)
            yield folder
        finally:
            os.close(lock)

    def add_signature(self, digest: str, data: bytes) -> None:
        """Put a signature into a package's folder, atomically: others read there meanwhile."""
        temporary = self.root / PARTIAL / f"{_hex(digest)}.sig"
        write_file(temporary, data)
        temporary.replace(self._folder(digest) / "model.sig")

    def set_aside(self, digest: str) -> None:
        """Move a damaged copy to `damaged/`, where it is still in its place."""
        lock = self._lock_for(digest, fcntl.LOCK_EX)
        try:
            (self.root / DAMAGED).mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):
                self._folder(digest).rename(self.root / DAMAGED / f"{_hex(digest)}-{time.time_ns()}")
            record_of(self._folder(digest)).unlink(missing_ok=True)
        finally:
            os.close(lock)

    def size(self) -> int:
        """Bytes of all entries."""
        return sum(kept.size for kept in self._entries())

    def shrink(self, limit: int | None = None) -> list[CachedPackage]:
        """Evict the least recently used until no more than `limit` bytes are left; returns what was removed."""
        everything = sorted(self._entries(), key=lambda kept: (kept.path.parent.name == PACKAGES, kept.used))
        total, most = sum(kept.size for kept in everything), self.limit if limit is None else limit
        removed: list[CachedPackage] = []
        for kept in everything:
            abandoned = kept.path.name.startswith(TEMPORARY_PREFIX)
            if (abandoned or total > most) and self._remove(kept):
                removed.append(kept)
                total -= kept.size
        return removed

    def _lock_package(self, resolved: Resolved, hub: PackageHub, progress: Progress | None) -> int:
        """A shared lock on a package that is here; fetched again where others evict it before we hold the lock."""
        for _ in range(ATTEMPTS):
            lock = self._lock_for(resolved.digest, fcntl.LOCK_SH)
            if self.holds(resolved.digest):
                return lock
            os.close(lock)
            lock = self._lock_for(resolved.digest, fcntl.LOCK_EX)
            try:
                if not self.holds(resolved.digest):  # another process may have fetched it meanwhile
                    with _usable(self.root):
                        self._fetch(resolved, hub, progress)
            finally:
                os.close(lock)
        raise HubError(
            f"{resolved.pinned} is evicted from the cache as often as it is fetched",
            found=f"a limit of {self.limit} bytes for {self.root}",
            fix="raise cache_bytes in the settings",
        )

    def _fetch(self, resolved: Resolved, hub: PackageHub, progress: Progress | None) -> None:
        folder, scratch = self._folder(resolved.digest), self.root / PARTIAL / _hex(resolved.digest)
        try:
            manifest = hub.fetch(resolved, folder, progress=progress, scratch=scratch)
        except FormatError:
            shutil.rmtree(scratch, ignore_errors=True)  # nothing of it can be trusted
            raise
        record_fetched(folder, manifest)
        shutil.rmtree(scratch, ignore_errors=True)
        self.shrink()
        log.debug("cached %s@%s", manifest.name, manifest.version)

    def _remove(self, kept: CachedPackage) -> bool:
        """Remove an entry unless it is being read or fetched; whether it was removed."""
        if kept.path.parent.name not in (PACKAGES, PARTIAL) or kept.path.name.startswith(TEMPORARY_PREFIX):
            _erase(kept.path)
            return True
        lock_path = self.root / LOCKS / kept.path.name
        try:
            lock = _lock(lock_path, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        try:
            gone = kept.path.with_name(f"{TEMPORARY_PREFIX}{kept.path.name}-{time.time_ns()}")
            kept.path.rename(gone)  # atomic, so that no reader finds half of it
            _erase(gone)
            record_of(kept.path).unlink(missing_ok=True)
            lock_path.unlink(missing_ok=True)
        except FileNotFoundError:
            return False
        finally:
            os.close(lock)
        return True

    def _entries(self) -> Iterator[CachedPackage]:
        now = time.time()
        for part in (DAMAGED, PARTIAL, VALIDATED, PACKAGES):
            with suppress(FileNotFoundError):
                for entry in os.scandir(self.root / part):
                    used = entry.stat(follow_symlinks=False).st_mtime
                    unfinished = entry.name.startswith(TEMPORARY_PREFIX)
                    if now - used > ABANDONED if unfinished else part != VALIDATED:
                        yield CachedPackage(Path(entry.path), _bytes(entry), used)

    def _folder(self, digest: str) -> Path:
        return self.root / PACKAGES / _hex(digest)

    def _lock_for(self, digest: str, mode: int) -> int:
        path = self.root / LOCKS / _hex(digest)
        with _usable(self.root):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                return _lock(path, mode | fcntl.LOCK_NB)
            except BlockingIOError:
                log.info("waiting for another process that fetches %s", digest)
                return _lock(path, mode)


def _open(path: Path) -> int:
    """To read is enough to lock it: it may be another user's."""
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)


def check_cache() -> None:
    """Raises `UsageError` for a cache folder that cannot be written; the endpoint asks before it starts."""
    root = cache_root()
    with _usable(root):
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=root):
            pass


@contextmanager
def _usable(root: Path) -> Iterator[None]:
    """Whatever the system says inside is about the place that the user chose for the cache."""
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"the cache folder {root} cannot be used",
            found=error.strerror or str(error),
            expected="a folder that can be written",
            fix="have SPARSEHUB_CACHE name one",
        ) from error


def _lock(path: Path, mode: int) -> int:
    """An open, locked file. A lock file that was removed while we waited for it locks nothing, so we look again.

    By `fcntl`: readers share a lock, and go with their process. filelock's shared locks are kept in an SQLite database
    a lock, which could not be removed with its package.
    """
    while True:
        descriptor = _open(path)
        try:
            fcntl.flock(descriptor, mode)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), path.stat()):
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _erase(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _hex(digest: str) -> str:
    return digest.removeprefix("sha256:")


def _bytes(entry: os.DirEntry[str]) -> int:
    if not entry.is_dir(follow_symlinks=False):
        return entry.stat(follow_symlinks=False).st_size
    return sum(file.stat(follow_symlinks=False).st_size for file in os.scandir(entry.path))
