"""What lies in the memory of another process, for tests that trust no word of it."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from pathlib import Path


def is_mapped(pid: int, data: bytes) -> bool:
    """Whether a process that this one started has mapped memory for just so many bytes, and these are in it. By Linux'
    /proc; what is left somewhere of a file that was read does not count."""
    return any(region.startswith(data) for region in _regions(pid, -(-len(data) // mmap.PAGESIZE) * mmap.PAGESIZE))


def _regions(pid: int, size: int) -> Iterator[bytes]:
    """What is in each region of a size that can be written to and that no file backs."""
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            span, rights, _, _, inode, *_ = line.split()
            start, end = (int(address, 16) for address in span.split("-"))
            if rights.startswith("rw") and inode == "0" and end - start == size:
                yield os.pread(memory.fileno(), size, start)
