"""What becomes of freed memory: training, selection and extraction return it to the operating system, and so does an
endpoint after large requests; between its batches an engine keeps it."""

from __future__ import annotations

import ctypes
import platform
from dataclasses import dataclass

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


@dataclass(frozen=True)
class KeptMemory:
    """What a process may keep of freed memory, in bytes."""

    block: int  # the smallest block that is given back by itself
    kept: int  # at the end of the heap, of smaller ones


STRICT = KeptMemory(1 << 20, 128 << 10)
# Small blocks come again in every step. On MiniLM a run took 52 s in place of 59, for 6% more memory; on a backbone of
# 109 million weights 84 in place of 97, for 8%.
TRAINING = KeptMemory(4 << 20, 64 << 20)
SERVING = KeptMemory(32 << 20, 256 << 20)  # the largest block that glibc allows


def return_freed_memory(keeps: KeptMemory = STRICT) -> None:
    """Give freed memory back to the system, and from here on every block of `keeps.block` bytes or more as soon as it
    is freed, and of smaller ones what is above `keeps.kept` at the end of the heap.

    glibc begins like this too, but keeps ever larger blocks once it has seen some: after a few training steps the holes
    between activations are a fifth of the process. Costs a page fault for each page of a new block, some percent of a
    step. Does nothing with other C libraries.
    """
    _keep(keeps)
    trim_memory()


def keep_freed_memory() -> None:
    """Keep what `SERVING` says of freed memory for what is allocated next; the opposite of `return_freed_memory`.

    What one layer frees the next one allocates: given back meanwhile, every page of it is found and cleared anew. With
    this a pass of 16 tasks on 16 texts took 151 ms in place of 162 (MiniLM, trunk and branches). `trim_memory` still
    gives it back. Does nothing with other C libraries.
    """
    _keep(SERVING)


def _keep(keeps: KeptMemory) -> None:
    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        library.mallopt(_M_MMAP_THRESHOLD, keeps.block)
        library.mallopt(_M_TRIM_THRESHOLD, keeps.kept)


def trim_memory() -> None:
    """Give freed memory back to the system once; what is allocated later is kept as before."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
