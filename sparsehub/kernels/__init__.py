"""The only door to the kernels: tensors in, tensors out, no knowledge of deltas or tasks.

Every function takes a one-dimensional, contiguous `arena` and one-dimensional, contiguous `positions` into it.
Positions are int64 or int32, strictly increasing and in range: the caller has checked that, the kernels do not.
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from sparsehub.kernels import native, torch_ops

__all__ = ["gather", "position_dtype", "scatter_add_", "scatter_copy_"]


def gather(arena: Tensor, positions: Tensor) -> Tensor:
    """out[i] = arena[positions[i]].

    arena: [n] any dtype; positions: [k] int64 or int32. Returns [k] in the arena's dtype.
    """
    result: Tensor = _kernels(arena).gather(arena, positions)
    return result


def scatter_add_(arena: Tensor, positions: Tensor, values: Tensor) -> None:
    """arena[positions[i]] += values[i], summed in float32 and rounded once to the arena's dtype.

    arena: [n] float32, float16 or bfloat16; positions: [k] int64 or int32, distinct; values: [k] floating.
    """
    _kernels(arena).scatter_add_(arena, positions, values)


def scatter_copy_(arena: Tensor, positions: Tensor, values: Tensor) -> None:
    """arena[positions[i]] = values[i].

    arena: [n] any dtype; positions: [k] int64 or int32, distinct; values: [k] in the arena's dtype.
    """
    _kernels(arena).scatter_copy_(arena, positions, values)


def position_dtype(arena: Tensor) -> torch.dtype:
    """The dtype of positions that is fastest for this arena: half the bytes where the kernels take them as they are."""
    return torch.int32 if _kernels(arena) is not torch_ops and arena.numel() < 1 << 31 else torch.int64


def _kernels(arena: Tensor) -> ModuleType:
    return native if native.takes(arena) else torch_ops
