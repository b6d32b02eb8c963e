"""Products in 8 bits for an int8 base: rows of an input and weights, both rounded to 8 bits, in C++ or in torch.

Sums of products are exact, so a row's result does not depend on the rows beside it, nor on how many there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sparsehub.kernels import native, torch_ops
from sparsehub.kernels.native_module import extension
from sparsehub.kernels.sparse import Addresses, Changes, Segments, SparseChange

PANEL, GROUP = 64, 4  # outputs, and inputs of each, whose weights lie together, as in int8_product.hpp
MOST_INPUTS = 1 << 16  # whose products a sum in 32 bits holds
_LEVELS = 127  # of a weight on either side of 0, and of an input where the processor's sums hold them
_SMALLEST = 1e-30  # largest value of a row: rows of zeros are divided by it
_EXACT_IN_FLOAT = 1 << 10  # products of two levels, 127 * 127 each, whose sum float32 holds exactly


@dataclass(frozen=True)
class Int8Rows:
    """An input of int8 maps, each row rounded by a scale of its own."""

    levels: Tensor  # [rows, in up to a whole GROUP] uint8; `steps + 1` stands for 0
    units: Tensor  # [rows] float32: what a level is worth; NaN where the row has a value that is not finite
    steps: int  # levels on either side of 0


@dataclass(frozen=True)
class Int8Weight:
    """A Linear map's weights, rounded by a scale for each output."""

    shape: tuple[int, int]  # (out, in)
    packed: Tensor  # [panels, groups, PANEL, GROUP] int8: outputs and inputs up to a whole panel and group, with zeros
    scales: Tensor  # [out] float32: what a level is worth
    sums: Tensor  # [out] int32: of an output's levels

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """All that a product reads."""
        return self.packed, self.scales, self.sums

    @property
    def addresses(self) -> Addresses:
        """Where those are, as a row of a table of addresses."""
        return self.packed.data_ptr(), self.scales.data_ptr(), self.sums.data_ptr(), 0, 0


class Int8Map(NamedTuple):
    """One of the linear maps that `int8_linear` computes from one input."""

    weight: Int8Weight
    bias: Tensor | None  # b: [out] float32
    changes: Changes[SparseChange]


def quantise_rows(x: Tensor) -> Int8Rows:
    """levels[i] = round(x[i] / unit[i]), unit[i] = max |x[i]| / steps. x: [rows, in] float32, contiguous."""
    assert x.is_contiguous() and x.dtype == torch.float32 and x.is_cpu and x.ndim == 2
    rows, width = x.shape
    padded = _up_to(width, GROUP)
    if (module := extension()) is None:
        return _quantised_by_torch(x, padded)
    steps, levels, units = module.int8_steps(), x.new_empty((rows, padded), dtype=torch.uint8), x.new_empty(rows)
    addresses = x.data_ptr(), levels.data_ptr(), units.data_ptr()
    module.quantise_rows(*addresses, rows, width, padded, steps, torch.get_num_threads())
    return Int8Rows(levels, units, steps)


def pack_int8(weight: Tensor) -> Int8Weight:
    """Round a weight [out, in], float32 on the CPU. `in` is MOST_INPUTS at most."""
    (out, width), scales = weight.shape, (weight.abs().amax(1) / _LEVELS).clamp_min(_SMALLEST)
    assert width <= MOST_INPUTS and weight.dtype == torch.float32 and weight.is_cpu
    levels = (weight / scales[:, None]).round().to(torch.int8)
    whole = levels.new_zeros(_up_to(out, PANEL), _up_to(width, GROUP))
    whole[:out, :width] = levels
    packed = whole.view(-1, PANEL, whole.shape[1] // GROUP, GROUP).transpose(1, 2).contiguous()
    return Int8Weight((out, width), packed, scales, levels.sum(1, dtype=torch.int32))


def int8_linear(x: Tensor, rows: Int8Rows, maps: Sequence[Int8Map], segments: Segments) -> list[Tensor]:
    """y[i] = x[i] (W + dW_t') + b + db_t for every map and token i, t its slot; the products with W in 8 bits.

    x: [..., in] float32, contiguous, on the CPU; rows: the same, rounded; y: [..., out]. Every token is in a segment.
    """
    if native.takes_matrix(x):  # the products are added to what tasks change: so nothing is written to be read again
        ys = native.sparse_linear(x, [(m.weight.shape[0], m.bias, m.changes) for m in maps], segments)
        for y, m in zip(ys, maps, strict=True):
            _add_product(y, rows, m.weight, None)
        return ys
    ys = [int8_product(rows, m.weight, m.bias).view(*x.shape[:-1], -1) for m in maps]
    for y, m in zip(ys, maps, strict=True):
        torch_ops.sparse_linear_(y, x, segments, m.changes)
    return ys


def int8_product(x: Int8Rows, weight: Int8Weight, bias: Tensor | None) -> Tensor:
    """y[i] = x[i] W' + b, in float32 after exact sums: [rows, out]. A row that had a value that is not finite gives NaN
    throughout. bias: [out] float32."""
    y = x.units.new_empty((len(x.units), weight.shape[0]))
    _add_product(y, x, weight, y.new_zeros(weight.shape[:1]) if bias is None else bias)
    return y


def _add_product(y: Tensor, x: Int8Rows, weight: Int8Weight, start: Tensor | None) -> None:
    """y[i] = start + x[i] W'; without `start` y[i] += x[i] W'. y: [..., out], a row for each of x."""
    out, width = weight.shape
    assert y.is_contiguous() and y.dtype == torch.float32 and y.shape[-1] == out
    assert y.numel() == len(x.levels) * out == len(x.units) * out
    assert x.levels.shape[1] == _up_to(width, GROUP) == GROUP * weight.packed.shape[1]
    assert start is None or (start.is_contiguous() and start.dtype == torch.float32 and start.shape == (out,))
    if (module := extension()) is None:
        _add_by_torch(y.view(-1, out), x, weight, start)
        return
    _call(module, y, x, weight.addresses, start)


def add_product_at(y: Tensor, x: Int8Rows, addresses: Sequence[int]) -> None:
    """y[i] += x[i] W', W by the addresses of its parts (`Int8Weight.addresses`); by the native kernels alone."""
    module = extension()
    assert module is not None and y.is_contiguous() and y.dtype == torch.float32
    _call(module, y, x, addresses, None)


def _call(module: ModuleType, y: Tensor, x: Int8Rows, addresses: Sequence[int], start: Tensor | None) -> None:
    begin = x.levels.data_ptr(), x.units.data_ptr(), *x.levels.shape
    end = x.steps, 0 if start is None else start.data_ptr(), y.data_ptr(), torch.get_num_threads()
    module.int8_product(*begin, *addresses[:3], y.shape[-1], *end)


def _quantised_by_torch(x: Tensor, padded: int) -> Int8Rows:
    sizes = x.abs().amax(-1).clamp_min_(_SMALLEST)
    levels = x.new_full((len(x), padded), _LEVELS + 1, dtype=torch.uint8)
    rounded = (x * (_LEVELS / sizes)[:, None]).round_().nan_to_num_()
    levels[:, : x.shape[1]] = rounded.add_(_LEVELS + 1).to(torch.uint8)
    return Int8Rows(levels, (sizes / _LEVELS).where(sizes.isfinite(), torch.nan), _LEVELS)


def _add_by_torch(y: Tensor, x: Int8Rows, weight: Int8Weight, start: Tensor | None) -> None:
    out, _ = weight.shape
    levels = x.levels.float().sub_(x.steps + 1)
    own = weight.packed.transpose(1, 2).reshape(-1, levels.shape[1])[:out].float()
    parts: Any = zip(levels.split(_EXACT_IN_FLOAT, 1), own.split(_EXACT_IN_FLOAT, 1), strict=True)
    totals = sum((its @ part.t()).int() for its, part in parts)
    product = totals.float().mul_(weight.scales).mul_(x.units[:, None])
    torch.add(y if start is None else start, product, out=y)


def _up_to(count: int, whole: int) -> int:
    return -(-count // whole) * whole
