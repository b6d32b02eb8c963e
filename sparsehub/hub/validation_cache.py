"""Records of which cached packages were hashed, so that `pull` need not hash untouched ones again.

validated/<hex> holds size, inode, times and digest of every file of a package as they were when all of them had been
hashed. `PackageCache` writes it after a fetch, `pull` after it has hashed a copy again. It decides nothing but whether
`pull` hashes: every use of a package hashes every byte of it. So a record that is lost, malformed or forged costs a
hash, or lets a changed copy pass until its next use.
"""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from sparsehub.files import canonical_json, write_file

if TYPE_CHECKING:
    from sparsehub.package import Manifest

VALIDATED = "validated"
# A file's times move in ticks, of ten milliseconds at most on Linux: two writes within one of them look like one.
SETTLED = 20_000_000  # nanoseconds


def record_of(folder: Path) -> Path:
    """The path of the record of a package in the cache, whether it exists or not."""
    return folder.parents[1] / VALIDATED / folder.name


def record_fetched(folder: Path, manifest: Manifest) -> None:
    """Record a package of the cache that was just fetched and hashed, before it is used for the first time.

    Waits for at most `SETTLED`, until any other write to its files shows in their times.
    """
    _, last_change = _file_states(folder, manifest)
    rest = last_change + SETTLED - time.time_ns()
    if rest > SETTLED:  # a file server whose clock is ahead of ours: its times tell us nothing
        return
    time.sleep(max(rest, 0) / 1e9)
    _write(folder, _file_states(folder, manifest)[0])


def validate_unchanged(folder: Path) -> Manifest:
    """Validate a package in the cache: its manifest, names and sizes always, bytes where they may have changed.

    Raises `FormatError`.
    """
    from sparsehub.package.validation import check_files, read_manifest, validate_digests

    manifest, started = read_manifest(folder), time.time_ns()
    check_files(folder, manifest)
    now, last_change = _file_states(folder, manifest)
    if not _matches(record_of(folder), now):
        validate_digests(folder, manifest)
        if last_change < started - SETTLED:  # a write from here on shows in the file's times
            _write(folder, now)
    return manifest


def _write(folder: Path, record: bytes) -> None:
    with suppress(OSError):  # a cache that is full or may only be read is as good, and slower
        write_file(record_of(folder), record)


def _file_states(folder: Path, manifest: Manifest) -> tuple[bytes, int]:
    """The record of the files as they are, and when the last one changed by its `ctime`, which nothing can set."""
    found = {name: (folder / name).lstat() for name in manifest.files}
    record = {
        name: [status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns, manifest.files[name].sha256]
        for name, status in found.items()
    }
    return canonical_json(record), max((status.st_ctime_ns for status in found.values()), default=0)


def _matches(record: Path, expected: bytes) -> bool:
    """Whether the stored record is exactly these bytes; it is never parsed."""
    with suppress(OSError):
        return record.is_file() and record.stat().st_size == len(expected) and record.read_bytes() == expected
    return False
