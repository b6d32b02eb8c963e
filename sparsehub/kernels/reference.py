"""The kernels as plain loops, mostly in float64: the definition that tests compare every other kernel with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sparsehub.kernels.sparse import Changes, Map, ScaleShift, Segments, SparseChange


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


def compress(positions: Tensor, values: Tensor, rows: int, width: int, transposed: bool) -> Tensor:
    """The matrix that the entries make, zeros included: [rows, width], or its transpose."""
    matrix = torch.zeros(rows, width)
    for position, value in zip(positions.tolist(), values.tolist(), strict=True):
        matrix[position // width, position % width] = value
    return matrix.t() if transposed else matrix


def dense(change: SparseChange) -> Tensor:
    """dW [out, in] float64, zeros included."""
    matrix = torch.zeros(change.shape, dtype=torch.float64)
    if change.starts is None or change.columns is None or change.values is None:
        return matrix
    for row in range(change.shape[0]):
        for k in range(int(change.starts[row]), int(change.starts[row + 1])):
            matrix[row, int(change.columns[k])] += float(change.values[k])
    return matrix


def sparse_linear_(y: Tensor, x: Tensor, segments: Segments, changes: Changes[SparseChange]) -> None:
    """y[i] = round(y[i] + dW_t x[i] + db_t), in float64 up to the one rounding."""
    for slot, start, stop in segments.bounds:
        part = changes.parts[slot]
        if part is None:
            continue
        matrix = dense(part) if part.starts is not None else None
        bias = part.bias.double() if part.bias is not None else 0.0
        for i in range(start, stop):
            change = matrix @ x[i].double() if matrix is not None else 0.0
            y[i] = (y[i].double() + change + bias).to(y.dtype)


def linear(x: Tensor, maps: Sequence[Map], segments: Segments) -> list[Tensor]:
    """y[i] = round(x[i] (W + dW_t') + b + db_t), in float64 up to the one rounding."""
    ys = []
    for m in maps:
        y = x.double() @ m.weight.double()
        if m.bias is not None:
            y = y + m.bias.double()
        sparse_linear_(y, x, segments, m.changes)
        ys.append(y.to(x.dtype))
    return ys


def shared_linear(
    x: Tensor, rows: Tensor, products: Sequence[Tensor], changes: Sequence[Changes[SparseChange]], segments: Segments
) -> list[Tensor]:
    """y[i] = round(product[rows[i]] + dW_t x[rows[i]] + db_t), in float64 up to the one rounding."""
    ys = [product[rows].double() for product in products]
    for y, its in zip(ys, changes, strict=True):
        sparse_linear_(y, x[rows], segments, its)
    return [y.to(x.dtype) for y in ys]


def sparse_lookup_(y: Tensor, ids: Tensor, segments: Segments, changes: Changes[SparseChange]) -> None:
    """y[i] = round(y[i] + dW_t[ids[i]]), in float64 up to the one rounding."""
    for slot, start, stop in segments.bounds:
        part = changes.parts[slot]
        if part is None:
            continue
        matrix = dense(part)
        for i in range(start, stop):
            y[i] = (y[i].double() + matrix[int(ids[i])]).to(y.dtype)


def scale_shift_(y: Tensor, segments: Segments, changes: Changes[ScaleShift]) -> None:
    """y[i] = round(y[i] * w_t + b_t), in float64 up to the one rounding."""
    for slot, start, stop in segments.bounds:
        part = changes.parts[slot]
        assert part is not None
        for i in range(start, stop):
            bias = 0.0 if part.bias is None else part.bias.double()
            y[i] = (y[i].double() * part.weight.double() + bias).to(y.dtype)


def layer_norm(x: Tensor, segments: Segments, changes: Changes[ScaleShift], epsilon: float) -> Tensor:
    """y[i] = round((x[i] - mean) / sqrt(variance + epsilon) * w_t + b_t), in float64 up to the one rounding."""
    return _norm(x, segments, changes, epsilon, centered=True)


def rms_norm(x: Tensor, segments: Segments, changes: Changes[ScaleShift], epsilon: float) -> Tensor:
    """y[i] = round(x[i] / sqrt(mean of squares + epsilon) * w_t), in float64 up to the one rounding."""
    return _norm(x, segments, changes, epsilon, centered=False)


def _norm(x: Tensor, segments: Segments, changes: Changes[ScaleShift], epsilon: float, *, centered: bool) -> Tensor:
    y = torch.empty_like(x)
    for slot, start, stop in segments.bounds:
        part = changes.parts[slot]
        assert part is not None
        for i in range(start, stop):
            row = x[i].double() - (x[i].double().mean() if centered else 0)
            row = row / (row.square().mean() + epsilon).sqrt() * part.weight.double()
            y[i] = (row if part.bias is None else row + part.bias.double()).to(x.dtype)
    return y
