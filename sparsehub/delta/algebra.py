"""Arithmetic on deltas, for conversion and for compositions of tasks: pure functions, delta in, delta out.

All of them work on `add` deltas, entry by entry, in float32; parameters are matched by name. An entry that comes out as
zero is left out, so `difference(a, a)` holds no parameter at all.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from sparsehub.delta.delta import Delta, ParameterDelta, value_dtypes
from sparsehub.errors import DeltaError, UsageError
from sparsehub.schema import unknown_name

Stack = tuple[Tensor, Tensor]  # positions [k] that any delta changes; values [deltas, k], zero where one does not
Combine = Callable[[Tensor], Tensor]  # values [deltas, k] to [k]


def weighted_sum(deltas: Sequence[Delta], weights: Sequence[float]) -> Delta:
    """sum_i w_i d_i: task arithmetic (Ilharco et al., "Editing Models with Task Arithmetic", ICLR 2023)."""
    scale = _column(deltas, weights)
    return _combine(deltas, lambda values: (values * scale).sum(0))


def scaled(delta: Delta, weight: float) -> Delta:
    """w d."""
    return weighted_sum([delta], [weight])


def difference(first: Delta, second: Delta) -> Delta:
    """second - first: what takes a backbone that carries `first` to one that carries `second`."""
    return weighted_sum([second, first], [1.0, -1.0])


def ties(deltas: Sequence[Delta], weights: Sequence[float], density: float) -> Delta:
    """TIES (Yadav et al., NeurIPS 2023): trim each delta, elect a sign per entry, average what agrees with it.

    density: the share of a delta's own changed entries that trimming keeps, the largest of each parameter. The sign of
    an entry is that of the sum over the trimmed deltas, as in PEFT; its value is the weighted sum of those that have
    this sign, over their number.
    """
    trimmed = [trim(delta, density) for delta in deltas]
    return _combine(trimmed, lambda values: _elect(values, _column(deltas, weights)), names=_names(deltas))


def dare(deltas: Sequence[Delta], weights: Sequence[float], density: float, *, seed: int, elect: bool = False) -> Delta:
    """DARE (Yu et al., ICML 2024): drop entries at random, divide the others by `density`, then sum.

    elect: TIES' sign election instead of the sum (`dare_ties` in PEFT and mergekit).
    """
    dropped = [drop(delta, density, seed=seed + number) for number, delta in enumerate(deltas)]
    scale = _column(deltas, weights)
    combine: Combine = (lambda v: _elect(v, scale)) if elect else (lambda v: (v * scale).sum(0))
    return _combine(dropped, combine, names=_names(deltas))


def trim(delta: Delta, density: float) -> Delta:
    """The largest int(density * n) of the n entries of each parameter; ties go to the earlier entry."""
    _check_density(density)

    def kept(part: ParameterDelta) -> Tensor:
        order = part.values.abs().sort(descending=True, stable=True).indices
        return order[: int(density * len(order))].sort().values

    return _filtered(delta, lambda _, part: kept(part))


def drop(delta: Delta, density: float, *, seed: int) -> Delta:
    """Each entry stays with probability `density` and is divided by it; drawn from the seed and a parameter's name."""
    _check_density(density)

    def kept(name: str, part: ParameterDelta) -> Tensor:
        generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))
        return torch.nonzero(torch.rand(len(part.values), generator=generator) < density).flatten()

    return scaled(_filtered(delta, kept), 1 / density) if density else Delta({}, "add", delta.value_dtype)


def prune(delta: Delta, budget: int) -> Delta:
    """The `budget` largest changes over all parameters; ties go to the earlier name, then the lower position."""
    if budget < 0:
        raise UsageError("a budget is a number of entries", found=budget, expected="0 or more")
    _require_add(delta)
    names = sorted(delta.parameters)
    sizes = torch.cat([delta.parameters[name].values.float().abs() for name in names] or [torch.empty(0)])
    chosen = sizes.sort(descending=True, stable=True).indices[:budget].sort().values
    places: dict[str, Tensor] = {}
    start = 0
    for name in names:
        stop = start + len(delta.parameters[name].indices)
        places[name] = chosen[(chosen >= start) & (chosen < stop)] - start
        start = stop
    return _filtered(delta, lambda name, _: places[name])


def with_value_dtype(delta: Delta, value_dtype: str) -> Delta:
    """The same changes, to be stored in another dtype; entries that are zero in it are left out.

    Raises `DeltaError` where a value is too large for it, and for `set` values: those are exact in their own dtype.
    """
    if value_dtype not in value_dtypes:
        raise UsageError(unknown_name("value dtype", value_dtype, list(value_dtypes)))
    _require_add(delta)
    parts = {}
    for name, part in delta.parameters.items():
        # int8 shares a scale among neighbours and is rounded when it is written
        values = part.values.float() if value_dtype == "int8" else part.values.float().to(value_dtypes[value_dtype])
        if not bool(torch.isfinite(values).all()):
            raise DeltaError(f"{name!r} has values that {value_dtype} cannot hold", fix="use bfloat16 or float32")
        parts[name] = ParameterDelta(part.shape, part.indices, values)
    return _without_zeros(Delta(parts, "add", value_dtype))


def as_additions(delta: Delta, base: Callable[[str], Tensor]) -> Delta:
    """A `set` delta as an `add` delta: value - base, in float32; an `add` delta as it is.

    base: the backbone's weights of a parameter. Both are exact in float32 for 16-bit weights; adding the result to a
    base in the same dtype rounds to the value that was set.
    """
    if delta.value_kind == "add":
        return delta
    parts = {
        name: ParameterDelta(part.shape, part.indices, part.values.float() - base(name).flatten()[part.indices].float())
        for name, part in delta.parameters.items()
    }
    return _without_zeros(Delta(parts, "add", "float32"))


def _elect(values: Tensor, scale: Tensor) -> Tensor:
    majority = torch.where(values.sum(0) >= 0, 1.0, -1.0)
    agrees = values.sign() == majority
    return (values * scale * agrees).sum(0) / agrees.sum(0).clamp(min=1)


def _column(deltas: Sequence[Delta], weights: Sequence[float]) -> Tensor:
    if len(deltas) != len(weights) or not deltas:
        raise UsageError("give one weight for each delta", found=len(weights), expected=len(deltas) or "a delta")
    return torch.tensor(list(weights), dtype=torch.float32)[:, None]


def _check_density(density: float) -> None:
    if not 0 <= density <= 1:
        raise UsageError("density is a share of a delta's entries", found=density, expected="0 to 1")


def _names(deltas: Iterable[Delta]) -> list[str]:
    return sorted({name for delta in deltas for name in delta.parameters})


def _combine(deltas: Sequence[Delta], combine: Combine, names: Sequence[str] | None = None) -> Delta:
    """Put the deltas one above the other at the positions that any of them changes, and combine the columns."""
    for delta in deltas:
        _require_add(delta)
    dtypes = {delta.value_dtype for delta in deltas}
    value_dtype = dtypes.pop() if len(dtypes) == 1 else "float32"
    parts = {}
    for name in names if names is not None else _names(deltas):
        found = [delta.parameters.get(name) for delta in deltas]
        shapes = {part.shape for part in found if part is not None}
        if len(shapes) > 1:
            raise DeltaError(f"{name!r} has other shapes in these deltas", found=", ".join(map(str, sorted(shapes))))
        if shapes:
            positions, values = _stacked(found)
            parts[name] = ParameterDelta(shapes.pop(), positions, combine(values))
    return _without_zeros(Delta(parts, "add", value_dtype))


def _stacked(parts: Sequence[ParameterDelta | None]) -> Stack:
    positions = torch.cat([part.indices for part in parts if part is not None]).unique()
    values = torch.zeros(len(parts), len(positions))
    for row, part in zip(values, parts, strict=True):
        if part is not None:
            row[torch.searchsorted(positions, part.indices)] = part.values.float()
    return positions, values


def _filtered(delta: Delta, kept: Callable[[str, ParameterDelta], Tensor]) -> Delta:
    """The entries at the places (into a part's own lists, sorted) that `kept` names."""
    _require_add(delta)
    parts: Mapping[str, ParameterDelta] = {
        name: ParameterDelta(part.shape, part.indices[places], part.values[places])
        for name, part in delta.parameters.items()
        if len(places := kept(name, part))
    }
    return Delta(parts, "add", delta.value_dtype)


def _without_zeros(delta: Delta) -> Delta:
    return _filtered(delta, lambda _, part: torch.nonzero(part.values).flatten())


def _require_add(delta: Delta) -> None:
    if delta.value_kind != "add":
        raise UsageError(
            "`set` values say what a weight becomes, not by how much it changes",
            found=delta.value_kind,
            expected="add",
            fix="give the backbone, so that they can be turned into changes",
        )
