"""A dense change of many tensors cut to its largest entries, tensor by tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from sparsehub.delta import Delta, ParameterDelta
from sparsehub.selection.threshold import top_k

ChangeOf = Callable[[str], Tensor]


def largest(names: Iterable[str], change_of: ChangeOf, budget: int) -> dict[str, Tensor]:
    """Flat positions, by name, of the `budget` largest absolute changes; ties go to the earlier entry."""
    return top_k(list(names), lambda name: change_of(name).flatten().float().abs(), budget)


def cut(
    shapes: Mapping[str, tuple[int, ...]], change_of: ChangeOf, budget: int, value_dtype: str
) -> tuple[Delta, float]:
    """The `budget` largest changes as an `add` delta, and their share of the whole change's squared norm.

    shapes: of the parameters, by name; change_of: a parameter's dense change, asked for several times and never kept.
    Entries that are zero once stored are left out.
    """
    chosen = largest(shapes, change_of, budget)
    parts, kept, whole = {}, 0.0, 0.0
    for name, shape in shapes.items():
        change = change_of(name).detach().flatten().cpu()
        whole += float(change.double().square().sum())
        positions = chosen.get(name, torch.empty(0, dtype=torch.int64))
        positions = positions[survives(change[positions], value_dtype)]
        if len(positions):
            parts[name] = ParameterDelta(shape, positions, change[positions])
            kept += float(change[positions].double().square().sum())
    return Delta(parts, "add", value_dtype), kept / whole if whole else 1.0


def survives(values: Tensor, value_dtype: str) -> Tensor:
    """Entries that are not zero once stored; int8 shares a scale among neighbours and keeps what float32 keeps."""
    stored = values if value_dtype == "int8" else values.to(getattr(torch, value_dtype))
    return stored != 0
