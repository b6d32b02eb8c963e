"""Return freed memory to the operating system, for training, selection, extraction, and after large requests."""

from __future__ import annotations

import ctypes
import platform

_M_MMAP_THRESHOLD = -3  # malloc.h
LARGE = 1 << 20  # bytes


def return_freed_memory() -> None:
    """Give freed memory back to the system, and from here on every block of a megabyte or more as soon as it is freed.

    glibc begins like this too, but keeps ever larger blocks once it has seen some: after a few training steps the holes
    between activations are a fifth of the process. Costs a page fault for each page of a new block, some percent of a
    step. Does nothing with other C libraries.
    """
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, LARGE)
        trim_memory()


def trim_memory() -> None:
    """Give freed memory back to the system once; what is allocated later is kept as before."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
