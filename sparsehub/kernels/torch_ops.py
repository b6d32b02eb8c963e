"""The kernels in plain torch, for every device and dtype without faster ones; `sparsehub.kernels` has the contracts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sparsehub.kernels.sparse import Changes, Map, ScaleShift, Segments, SparseChange, column_dtype

SparseLinear = Callable[[Tensor, Tensor, Segments, Changes[SparseChange]], None]
ScaleShiftOf = Callable[[Tensor, Segments, Changes[ScaleShift]], None]
# The kernel for what changes add to products of an input, which may be laid out for it once.
Adder = Callable[[Tensor, Segments], SparseLinear]


def gather(arena: Tensor, positions: Tensor) -> Tensor:
    """out[i] = arena[positions[i]]."""
    return arena.index_select(0, positions)  # it raises `IndexError` by itself


def scatter_add_(arena: Tensor, positions: Tensor, values: Tensor) -> None:
    """arena[positions[i]] += values[i], summed in float32."""
    positions, values, strays = inside(arena, positions, values)
    if arena.dtype == torch.float32:
        arena.scatter_add_(0, positions.long(), values.float())
    else:
        total = arena.index_select(0, positions).float().add_(values)
        _scatter(arena, positions, total.to(arena.dtype))
    refuse_strays(strays)


def scatter_copy_(arena: Tensor, positions: Tensor, values: Tensor) -> None:
    """arena[positions[i]] = values[i]."""
    positions, values, strays = inside(arena, positions, values)
    _scatter(arena, positions, values)
    refuse_strays(strays)


def _scatter(arena: Tensor, positions: Tensor, values: Tensor) -> None:
    if arena.element_size() == 2:  # torch's CPU scatter_ of half types walks the whole arena, that of int16 does not
        arena, values = arena.view(torch.int16), values.view(torch.int16)
    arena.scatter_(0, positions.long(), values)


def inside(arena: Tensor, positions: Tensor, values: Tensor) -> tuple[Tensor, Tensor, int]:
    """The positions that lie in the arena, their values, and how many there are beside."""
    if not len(positions):
        return positions, values, 0
    low, high = torch.aminmax(positions)
    if low >= 0 and high < len(arena):
        return positions, values, 0
    kept = (positions >= 0) & (positions < len(arena))
    return positions[kept], values[kept], len(positions) - int(kept.sum())


def refuse_strays(strays: int) -> None:
    """Raise `IndexError` where positions outside the arena were left out."""
    if strays:
        raise IndexError(f"positions outside the arena: {strays}; they were left out")


def compress(positions: Tensor, values: Tensor, rows: int, width: int, transposed: bool = False) -> SparseChange:
    """Entries by flat position to compressed sparse rows."""
    row = positions // width
    column = positions - row * width
    if transposed:
        order = torch.argsort(column, stable=True)
        row, column, values = column[order], row[order], values[order]
        rows, width = width, rows
    starts = torch.searchsorted(row, torch.arange(rows + 1, device=row.device, dtype=row.dtype), out_int32=True)
    return SparseChange((rows, width), starts, column.to(column_dtype(width)), values.clone())


def sparse_linear_(y: Tensor, x: Tensor, segments: Segments, changes: Changes[SparseChange]) -> None:
    """y[i] += dW_t x[i] + db_t."""
    y, x = flat(y), flat(x)
    for slot, start, stop in segments.bounds:
        part, rows = changes.parts[slot], slice(start, stop)
        if part is None:
            continue
        total = y[rows].float()
        if part.values is not None:
            total = total + (part.csr @ x[rows].float().t()).t()
        if part.bias is not None:
            total = total + part.bias
        y[rows] = total.to(y.dtype)


def _adder(x: Tensor, segments: Segments) -> SparseLinear:  # noqa: ARG001
    return sparse_linear_


def linear(
    x: Tensor,
    maps: Sequence[Map],
    segments: Segments,
    adder: Adder = _adder,
) -> list[Tensor]:
    """y[i] = x[i] (W + dW_t') + b + db_t for every map. adder: of the kernel for what the changes add."""
    add, ys = adder(x, segments), [torch.nn.functional.linear(x, m.weight.t(), m.bias).contiguous() for m in maps]
    for m, y in zip(maps, ys, strict=True):
        add(y, x, segments, m.changes)
    return ys


def shared_linear(
    x: Tensor,
    rows: Tensor,
    products: Sequence[Tensor],
    changes: Sequence[Changes[SparseChange]],
    segments: Segments,
    adder: Adder = _adder,
) -> list[Tensor]:
    """y[i] = product[rows[i]] + dW_t x[rows[i]] + db_t for every product. adder: as of `linear`."""
    grown = x.index_select(0, rows)
    add, ys = adder(grown, segments), [product.index_select(0, rows) for product in products]
    for y, its in zip(ys, changes, strict=True):
        add(y, grown, segments, its)
    return ys


def sparse_lookup_(y: Tensor, ids: Tensor, segments: Segments, changes: Changes[SparseChange]) -> None:
    """y[i] += dW_t[ids[i]]."""
    for slot, start, stop in segments.bounds:
        part = changes.parts[slot]
        if part is None or part.starts is None or part.columns is None or part.values is None:
            continue
        first, last = part.starts[ids[start:stop]].long(), part.starts[ids[start:stop] + 1].long()
        counts = last - first
        tokens = torch.repeat_interleave(torch.arange(start, stop, device=y.device), counts)
        before = torch.repeat_interleave(counts.cumsum(0) - counts, counts)
        entries = torch.repeat_interleave(first, counts) + torch.arange(len(tokens), device=y.device) - before
        places = tokens * y.shape[1] + part.columns.int()[entries]
        scatter_add_(y.view(-1), places, part.values[entries])


def scale_shift_(y: Tensor, segments: Segments, changes: Changes[ScaleShift]) -> None:
    """y[i] = y[i] * w_t + b_t."""
    for slot, start, stop in segments.bounds:
        part, rows = changes.parts[slot], y[start:stop]
        assert part is not None  # every slot of a segment has one
        scaled = rows.float() * part.weight
        rows.copy_(scaled if part.bias is None else scaled + part.bias)


def layer_norm(
    x: Tensor, segments: Segments, changes: Changes[ScaleShift], epsilon: float, scale: ScaleShiftOf = scale_shift_
) -> Tensor:
    """y[i] = (x[i] - mean) / sqrt(variance + epsilon) * w_t + b_t. scale: the kernel for the last two."""
    y = torch.nn.functional.layer_norm(x.float(), x.shape[-1:], eps=epsilon)
    scale(flat(y), segments, changes)
    return y.to(x.dtype)


def rms_norm(
    x: Tensor, segments: Segments, changes: Changes[ScaleShift], epsilon: float, scale: ScaleShiftOf = scale_shift_
) -> Tensor:
    """y[i] = x[i] / sqrt(mean of squares + epsilon) * w_t. scale: the kernel for the last."""
    y = torch.nn.functional.rms_norm(x.float(), x.shape[-1:], eps=epsilon)
    scale(flat(y), segments, changes)
    return y.to(x.dtype)


def flat(tensor: Tensor) -> Tensor:
    """[..., width] to [tokens, width]."""
    return tensor.view(-1, tensor.shape[-1])
