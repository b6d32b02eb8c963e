"""Return freed memory to the operating system, for training, selection and extraction."""

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
        library = ctypes.CDLL(None)
        library.mallopt(_M_MMAP_THRESHOLD, LARGE)
        library.malloc_trim(0)
