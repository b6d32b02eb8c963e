"""What lies in the memory of another process, for tests that trust no word of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


def copies_in_memory(pid: int, data: bytes) -> int:
    """How often `data` lies whole in the writable memory of a process that this one started, by Linux' /proc."""
    return sum(region.count(data) for region in _written_regions(pid, len(data)))


def _written_regions(pid: int, at_least: int) -> Iterator[bytes]:
    """What is in each region that can be written to, that no file backs and that has room for so many bytes."""
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            span, rights, _, _, inode, *path = line.split()
            start, end = (int(address, 16) for address in span.split("-"))
            anonymous = inode == "0" or path[:1] == ["/dev/zero"]  # the latter is how shared memory is shown
            if rights.startswith("rw") and anonymous and end - start >= at_least:
                yield os.pread(memory.fileno(), end - start, start)
