"""What the process holds beside what it uses."""

from __future__ import annotations

import contextlib
import ctypes
import platform
from collections.abc import Iterator
from typing import Any

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


def checkpoint_activations(model: Any) -> bool:
    """Have a transformers model compute activations again in the backward pass; False where it cannot."""
    if not getattr(model, "supports_gradient_checkpointing", False):
        return False
    new = getattr(model, "activation_checkpointing_enable", None)  # the name from transformers 5.23 on
    (new or model.gradient_checkpointing_enable)({"use_reentrant": False})
    return True


@contextlib.contextmanager
def checkpointed_activations(model: Any) -> Iterator[None]:
    """`checkpoint_activations` for a while."""
    enabled = checkpoint_activations(model)
    try:
        yield
    finally:
        if enabled:
            getattr(model, "activation_checkpointing_disable", model.gradient_checkpointing_disable)()
