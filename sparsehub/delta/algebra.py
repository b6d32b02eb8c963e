"""Arithmetic of deltas: pure functions, deltas in, deltas out."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sparsehub.delta.delta import Delta, ParameterDelta
from sparsehub.errors import DeltaError


def weighted_sum(deltas: Sequence[Delta], weights: Sequence[float]) -> Delta:
    """sum_i weights[i] * deltas[i], in float32. All must be `add` deltas of one backbone."""
    if any(delta.value_kind != "add" for delta in deltas):
        raise DeltaError("`set` deltas cannot be summed: they say what an entry becomes, not by how much it changes")
    names = sorted({name for delta in deltas for name in delta.parameters})
    parts = {}
    for name in names:
        found = [(d.parameters[name], w) for d, w in zip(deltas, weights, strict=True) if name in d.parameters]
        parts[name] = _sum_parts(name, found)
    return Delta(parts, "add", "float32")


def _sum_parts(name: str, parts: Sequence[tuple[ParameterDelta, float]]) -> ParameterDelta:
    shape = parts[0][0].shape
    if any(part.shape != shape for part, _ in parts):
        raise DeltaError(f"{name!r} has several shapes", found=sorted({part.shape for part, _ in parts}))
    indices, places = torch.cat([part.indices for part, _ in parts]).unique(return_inverse=True)
    values = torch.cat([part.values.float() * weight for part, weight in parts])
    return ParameterDelta(shape, indices, torch.zeros(len(indices)).index_add_(0, places, values))
