"""The kernels in C++ for the CPU: the contracts of `torch_ops`, at the speed of memory.

The extension is built at install where there is a compiler. `available` says whether it is here; the door then falls
back to torch, with one line in the log.
"""

from __future__ import annotations

import functools
import importlib
import logging
from types import ModuleType

import torch
from torch import Tensor

_DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
log = logging.getLogger("sparsehub")


@functools.cache
def extension() -> ModuleType | None:
    """The compiled module, or None where it was not built."""
    try:
        return importlib.import_module("sparsehub.kernels._native")
    except ImportError:
        log.warning("the native kernels are not built, torch's are used; install sparsehub again with a C++ compiler")
        return None


def takes(arena: Tensor) -> bool:
    """Whether these kernels run on this arena."""
    module = extension()
    if module is None or arena.device.type != "cpu":
        return False
    return arena.dtype in _DTYPES and (arena.dtype != torch.float16 or bool(module.HAS_FLOAT16))


def gather(arena: Tensor, positions: Tensor) -> Tensor:
    """out[i] = arena[positions[i]]."""
    out = torch.empty(len(positions), dtype=arena.dtype)
    _call("gather", arena, positions, out, arena.element_size())
    return out


def scatter_add_(arena: Tensor, positions: Tensor, values: Tensor) -> None:
    """arena[positions[i]] += values[i], summed in float32 and rounded once to the arena's dtype."""
    _call("scatter_add", arena, positions, values.float().contiguous(), _DTYPES[arena.dtype])


def scatter_copy_(arena: Tensor, positions: Tensor, values: Tensor) -> None:
    """arena[positions[i]] = values[i]."""
    assert values.dtype == arena.dtype, (values.dtype, arena.dtype)
    _call("scatter_copy", arena, positions, values.contiguous(), arena.element_size())


def _call(name: str, arena: Tensor, positions: Tensor, values: Tensor, kind: int) -> None:
    # Wrong here would be a write into foreign memory, so what costs nothing is looked at again.
    assert arena.is_contiguous() and positions.is_contiguous() and len(values) == len(positions)
    getattr(extension(), name)(
        arena.data_ptr(),
        positions.data_ptr(),
        values.data_ptr(),
        kind,
        positions.element_size(),
        len(positions),
        torch.get_num_threads(),
    )
