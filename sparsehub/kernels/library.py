"""The kernels of batches as ops of torch: with a schema and a fake implementation, so that they can be exported
and compiled. `engine/compiled` makes graphs of them; inside a program they are the C++ of `program_ops.hpp`.

tables: [modules, slots, ADDRESSES] int64, where each task's change of each module is (`Changes.tables`); blocks:
[count, 3] int64, which tokens are which task's (`Segments.blocks`), every token in one of them. There may be any number
of slots and blocks, so one graph serves all batches. On the CPU, with the native kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sparsehub.kernels import native
from sparsehub.kernels.gelu import gelu
from sparsehub.kernels.int8 import add_product_at, quantise_rows
from sparsehub.kernels.sparse import Changes, Map, Segments

OPS = ("mixed_linear", "shared_linear", "int8_linear", "mixed_embedding", "mixed_norm", "plain_linear", "exact_gelu")


@torch.library.custom_op(
    "sparsehub::mixed_linear",
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor x, Tensor[] weights, Tensor[] biases, Tensor tables, Tensor blocks, int[] modules, "
    "bool transposed) -> Tensor",
)
def mixed_linear(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    tables: Tensor,
    blocks: Tensor,
    modules: Sequence[int],
    transposed: bool,
) -> Tensor:
    """`kernels.linear` of maps of one size: [maps, ..., out].

    x: [..., in]; weights: [out, in], or [in, out] where `transposed`; biases: one for each map, or none at all.
    """
    maps = [
        Map(weight if transposed else weight.t(), biases[i] if biases else None, _changes(tables, module))
        for i, (weight, module) in enumerate(zip(weights, modules, strict=True))
    ]
    return torch.stack(native.linear(x, maps, _segments(blocks)))


@mixed_linear.register_fake
def _(x: Tensor, weights: Sequence[Tensor], *others: Any) -> Tensor:
    return _empty_outputs(x, weights, transposed=others[-1])


@torch.library.custom_op(
    "sparsehub::shared_linear",
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor x, Tensor source, Tensor rows, Tensor[] weights, Tensor[] biases, Tensor tables, Tensor blocks, "
    "int[] modules, bool transposed) -> Tensor",
)
def shared_linear(
    x: Tensor,
    source: Tensor,
    rows: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    tables: Tensor,
    blocks: Tensor,
    modules: Sequence[int],
    transposed: bool,
) -> Tensor:
    """`mixed_linear` of x, each row of which is made of one of fewer: the base products are computed once for those.

    x: [n, ..., in] = source[rows]; where `source` has no fewer rows than x, it is x, and `rows` is not read.
    """
    if len(source) >= len(x):
        return mixed_linear(x, weights, biases, tables, blocks, modules, transposed)
    matrices = [weight.t() if transposed else weight for weight in weights]
    flat = source.view(-1, source.shape[-1])
    products = [
        torch.nn.functional.linear(flat, matrix, biases[i] if biases else None) for i, matrix in enumerate(matrices)
    ]
    length = len(flat) // len(source)
    tokens = (rows[:, None] * length + torch.arange(length)).flatten()
    changes = [_changes(tables, module) for module in modules]
    ys = native.shared_linear(flat, tokens, products, changes, _segments(blocks))
    return torch.stack(ys).view(len(ys), *x.shape[:-1], -1)


@shared_linear.register_fake
def _(x: Tensor, _source: Tensor, _rows: Tensor, weights: Sequence[Tensor], *others: Any) -> Tensor:
    return _empty_outputs(x, weights, transposed=others[-1])


@torch.library.custom_op(
    "sparsehub::int8_linear",
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor x, Tensor[] biases, Tensor tables, Tensor blocks, int[] modules, int out) -> Tensor",
)
def int8_linear(
    x: Tensor, biases: Sequence[Tensor], tables: Tensor, blocks: Tensor, modules: Sequence[int], out: int
) -> Tensor:
    """`kernels.int8_linear` of maps of one size: [maps, ..., out].

    x: [..., in]; biases: as of `mixed_linear`; tables: their last slot has the addresses of the maps' own weights.
    """
    rows = quantise_rows(x.view(-1, x.shape[-1]))
    maps = [(out, biases[i] if biases else None, _changes(tables, module)) for i, module in enumerate(modules)]
    ys = native.sparse_linear(x, maps, _segments(blocks))
    for y, module in zip(ys, modules, strict=True):
        add_product_at(y, rows, tables[module, -1].tolist())
    return torch.stack(ys)


@int8_linear.register_fake
def _(
    x: Tensor, _biases: Sequence[Tensor], _tables: Tensor, _blocks: Tensor, modules: Sequence[int], out: int
) -> Tensor:
    return x.new_empty((len(modules), *x.shape[:-1], out))


@torch.library.custom_op(
    "sparsehub::plain_linear",
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor x, Tensor weight, Tensor[] biases) -> Tensor",
)
def plain_linear(x: Tensor, weight: Tensor, biases: Sequence[Tensor]) -> Tensor:
    """torch's own `linear`; inside a program it has a kernel of its own for few rows (`few_rows.hpp`).

    x: [..., in]; weight: [out, in]; biases: one, or none.
    """
    return torch.nn.functional.linear(x, weight, biases[0] if biases else None)


@plain_linear.register_fake
def _(x: Tensor, weight: Tensor, _biases: Sequence[Tensor]) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


@torch.library.custom_op("sparsehub::exact_gelu", mutates_args=(), device_types="cpu", schema="(Tensor x) -> Tensor")
def exact_gelu(x: Tensor) -> Tensor:
    """`gelu.gelu` of x, contiguous."""
    return gelu(x)


@exact_gelu.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op(
    "sparsehub::mixed_embedding",
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor ids, Tensor weight, Tensor tables, Tensor blocks, int module) -> Tensor",
)
def mixed_embedding(ids: Tensor, weight: Tensor, tables: Tensor, blocks: Tensor, module: int) -> Tensor:
    """The rows of ids [...] in a table [rows, width], and on top each task's changes of them: [..., width]."""
    y = torch.nn.functional.embedding(ids, weight).contiguous()
    native.sparse_lookup_(y.view(-1, y.shape[-1]), ids.reshape(-1), _segments(blocks), _changes(tables, module))
    return y


@mixed_embedding.register_fake
def _(ids: Tensor, weight: Tensor, _tables: Tensor, _blocks: Tensor, _module: int) -> Tensor:
    return weight.new_empty((*ids.shape, weight.shape[1]))


@torch.library.custom_op(
    "sparsehub::mixed_norm",
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor x, Tensor tables, Tensor blocks, int module, float epsilon, bool centered) -> Tensor",
)
def mixed_norm(x: Tensor, tables: Tensor, blocks: Tensor, module: int, epsilon: float, centered: bool) -> Tensor:
    """`kernels.layer_norm` of x [..., width] where `centered`, else `kernels.rms_norm`."""
    norm = native.layer_norm if centered else native.rms_norm
    return norm(x, _segments(blocks), _changes(tables, module), epsilon)


@mixed_norm.register_fake
def _(x: Tensor, _tables: Tensor, _blocks: Tensor, _module: int, _epsilon: float, _centered: bool) -> Tensor:
    return torch.empty_like(x)


def _empty_outputs(x: Tensor, weights: Sequence[Tensor], transposed: bool) -> Tensor:
    """What maps of one size give of x: [maps, ..., out]."""
    return x.new_empty((len(weights), *x.shape[:-1], weights[0].shape[1 if transposed else 0]))


def _changes(tables: Tensor, module: int) -> Changes:  # type: ignore[type-arg]
    """Of one module; the native kernels read the table alone."""
    assert tables.is_contiguous() and tables.dtype == torch.int64
    return Changes((), tables, module, tables[module].data_ptr())


def _segments(blocks: Tensor) -> Segments:
    """Of blocks alone, which is all that the native kernels read."""
    assert blocks.is_contiguous() and blocks.dtype == torch.int64
    return Segments((), blocks, blocks.data_ptr(), len(blocks), int(blocks[:, 2].max()))
