"""What was proved of a package in the cache, so that `pull` need not hash again what nobody has touched since.

proved/<hex> holds size, inode, times and digest of every file as they were when all of them were hashed. It decides
nothing but whether `pull` hashes: who loads a package hashes every byte of it, whatever stands here. So a record that
is lost, malformed or forged costs a hash, or brings a copy to light a moment later.
"""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from sparsehub.files import canonical_json, write_file

if TYPE_CHECKING:
    from sparsehub.package import Manifest

PROVED = "proved"
# A file's times move in ticks, of ten milliseconds at most on Linux: two writes within one of them look like one.
SETTLED = 20_000_000  # nanoseconds


def record_of(folder: Path) -> Path:
    """Where the record of a package in the cache is, whether it is there or not."""
    return folder.parents[1] / PROVED / folder.name


def validate_unchanged(folder: Path) -> Manifest:
    """Prove a package in the cache: its manifest, names and sizes always, bytes where they may have changed.

    Raises `FormatError`.
    """
    from sparsehub.package.validation import check_files, read_manifest, validate_digests

    manifest, started = read_manifest(folder), time.time_ns()
    check_files(folder, manifest)
    now, last_change = _seen(folder, manifest)
    if not _says(record_of(folder), now):
        validate_digests(folder, manifest)
        if last_change < started - SETTLED:  # a write from here on shows in the file's times
            with suppress(OSError):  # a cache that is full or may only be read is as good, and slower
                write_file(record_of(folder), now)
    return manifest


def _seen(folder: Path, manifest: Manifest) -> tuple[bytes, int]:
    """The files as a record says them, and when the last of them changed. `ctime` is what nobody can set."""
    found = {name: (folder / name).lstat() for name in manifest.files}
    record = {
        name: [status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns, manifest.files[name].sha256]
        for name, status in found.items()
    }
    return canonical_json(record), max((status.st_ctime_ns for status in found.values()), default=0)


def _says(record: Path, expected: bytes) -> bool:
    """Whether the record is these very bytes: nothing of it is parsed."""
    with suppress(OSError):
        return record.is_file() and record.stat().st_size == len(expected) and record.read_bytes() == expected
    return False
