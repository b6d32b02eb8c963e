"""The kernels in plain torch: they work on every device that torch works on."""

from __future__ import annotations

import torch
from torch import Tensor


def gather(arena: Tensor, positions: Tensor) -> Tensor:
    """out[i] = arena[positions[i]].

    arena: [n] any dtype; positions: [k] int64 or int32. Returns [k] in the arena's dtype.
    """
    return arena.index_select(0, positions)


def scatter_add_(arena: Tensor, positions: Tensor, values: Tensor) -> None:
    """arena[positions[i]] += values[i], summed in float32 and rounded once to the arena's dtype.

    arena: [n] float32, float16 or bfloat16; positions: [k] int64 or int32, distinct; values: [k] floating.
    """
    if arena.dtype == torch.float32:
        arena.scatter_add_(0, positions.long(), values.float())
        return
    total = arena.index_select(0, positions).float().add_(values)
    scatter_copy_(arena, positions, total.to(arena.dtype))


def scatter_copy_(arena: Tensor, positions: Tensor, values: Tensor) -> None:
    """arena[positions[i]] = values[i].

    arena: [n] any dtype; positions: [k] int64 or int32, distinct; values: [k] in the arena's dtype.
    """
    if arena.element_size() == 2:  # torch's CPU scatter_ of half types walks the whole arena, that of int16 does not
        arena, values = arena.view(torch.int16), values.view(torch.int16)
    arena.scatter_(0, positions.long(), values)
