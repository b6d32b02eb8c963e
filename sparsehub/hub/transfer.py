"""Downloads from a hub: files in parallel, large ones in concurrent pieces, hashed in order, resumed after a stop."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from sparsehub.errors import IntegrityError, UnreachableError
from sparsehub.files import CHUNK, sha256_bytes
from sparsehub.hub.retry import with_retries

if TYPE_CHECKING:
    from sparsehub.package.manifest import FileRecord

PIECE = 4 << 20  # bytes of one request
AHEAD = 4  # pieces of one file that are requested before the oldest is written
FILES = 3  # in parallel
REQUESTS = 8  # in parallel, over all files
Progress = Callable[[int, int], None]
"""Called with the bytes that are done and the bytes of all; from any thread, one call at a time."""


class Meter:
    """Adds up the bytes that many threads move, and reports them to a `Progress`."""

    def __init__(self, total: int, progress: Progress | None):
        self._total, self._progress = total, progress
        self._done, self._lock = 0, Lock()

    def add(self, count: int) -> None:
        with self._lock:
            self._done += count
            if self._progress is not None:
                self._progress(self._done, self._total)


@dataclass(frozen=True)
class Download:
    """A file to fetch."""

    name: str
    record: FileRecord  # its size and digest, as the manifest promises them
    open: Callable[[int, int], Iterator[bytes]]  # its bytes from start to stop, in chunks; more or fewer may come


def download_all(files: Sequence[Download], folder: Path, meter: Meter) -> None:
    """Write the files into `folder`, every byte counted, and hashed once before it is written.

    What an earlier attempt left there is hashed and kept. Raises `IntegrityError` for other bytes than promised.
    """
    with ThreadPoolExecutor(REQUESTS) as requests, ThreadPoolExecutor(FILES) as workers:
        running = [workers.submit(_download, file, folder / file.name, requests, meter) for file in files]
        try:
            for finished in as_completed(running):
                finished.result()
        except BaseException:
            workers.shutdown(wait=False, cancel_futures=True)
            requests.shutdown(wait=False, cancel_futures=True)  # threads that wait for a piece end with an error
            raise


def download_bytes(file: Download) -> bytes:
    """A small file in memory; raises `IntegrityError` for other bytes than promised."""
    data = _piece(file, 0, file.record.size, Meter(file.record.size, None))
    if (digest := sha256_bytes(data)) != file.record.sha256:
        raise damaged(file.name, digest, file.record.sha256)
    return bytes(data)


def _download(file: Download, path: Path, requests: ThreadPoolExecutor, meter: Meter) -> None:
    done, hashed = _kept(path, file.record.size)
    meter.add(done)
    with path.open("ab") as out:
        for piece in _pieces(file, done, requests, meter):
            hashed.update(piece)
            out.write(piece)
    digest = "sha256:" + hashed.hexdigest()
    if digest == file.record.sha256:
        return
    path.unlink()
    if not done:
        raise damaged(file.name, digest, file.record.sha256)
    meter.add(-file.record.size)
    _download(file, path, requests, meter)  # the bytes of the earlier attempt may have been the wrong ones


def _kept(path: Path, size: int) -> tuple[int, hashlib._Hash]:
    """How many bytes an earlier attempt left, and their hash; a file that is too long is removed."""
    hashed, done = hashlib.sha256(), 0
    if path.exists() and path.stat().st_size <= size:
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                hashed.update(chunk)
                done += len(chunk)
        return done, hashed
    path.unlink(missing_ok=True)
    return 0, hashed


def _pieces(file: Download, start: int, requests: ThreadPoolExecutor, meter: Meter) -> Iterator[bytearray]:
    """The pieces of a file from `start` on, in order; a few are requested ahead."""
    size, waiting = file.record.size, deque[Future[bytearray]]()
    for begin in range(start, size, PIECE):
        waiting.append(requests.submit(_piece, file, begin, min(begin + PIECE, size), meter))
        if len(waiting) > AHEAD:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _piece(file: Download, start: int, stop: int, meter: Meter) -> bytearray:
    """Exactly the bytes from `start` to `stop`; a broken request is repeated from where it stopped."""
    data = bytearray()

    def rest() -> None:
        if len(data) == stop - start:  # it broke after the last byte, and no backend serves an empty range
            return
        for chunk in file.open(start + len(data), stop):
            if len(data) + len(chunk) > stop - start:
                raise damaged(file.name, "more bytes than there can be", f"{file.record.size} bytes")
            data.extend(chunk)
            meter.add(len(chunk))
        if len(data) < stop - start:
            raise UnreachableError(f"{file.name} broke off", found=f"{start + len(data)} bytes", expected=stop)

    with_retries(rest, lambda: len(data))
    return data


def damaged(what: str, found: object, expected: object) -> IntegrityError:
    """The error for bytes of a hub that are not what was promised."""
    fix = "remove it from the hub and publish the package again"
    return IntegrityError(f"{what} is damaged in the hub", found=found, expected=expected, fix=fix)
