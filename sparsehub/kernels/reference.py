"""Plain loops: the definition that every other kernel is tested against."""

from __future__ import annotations

import torch
from torch import Tensor


def gather(arena: Tensor, positions: Tensor) -> Tensor:
    """out[i] = arena[positions[i]], in the arena's dtype."""
    return torch.stack([arena[int(p)] for p in positions]) if len(positions) else arena.new_empty(0)


def scatter_add_(arena: Tensor, positions: Tensor, values: Tensor) -> None:
    """arena[positions[i]] = round(float32(arena[positions[i]]) + float32(values[i])), rounded once."""
    for p, value in zip(positions.tolist(), values, strict=True):
        arena[p] = (arena[p].float() + value.float()).to(arena.dtype)


def scatter_copy_(arena: Tensor, positions: Tensor, values: Tensor) -> None:
    """arena[positions[i]] = values[i]; the dtypes are equal."""
    for p, value in zip(positions.tolist(), values, strict=True):
        arena[p] = value
