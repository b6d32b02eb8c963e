"""The kernels in C++ for the CPU, called by `sparsehub.kernels`, which states their contracts.

Where the compiled module was not built at install, `takes` and `takes_matrix` are False, and `sparsehub.kernels` uses
torch.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import torch
from torch import Tensor

from sparsehub.kernels import torch_ops
from sparsehub.kernels.native_module import extension, module_of_kernels
from sparsehub.kernels.sparse import (
    MAX_SHORT_COLUMNS,
    Changes,
    Map,
    ScaleShift,
    Segments,
    SparseChange,
    column_dtype,
)

_DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
Addend = tuple[
    int, Tensor | None, Changes[SparseChange]
]  # of a linear map: its outputs, b [out] and each task's change


def takes(arena: Tensor) -> bool:
    """Whether gather and scatter run on this arena."""
    module = extension()
    if module is None or arena.device.type != "cpu":
        return False
    return arena.dtype in _DTYPES and (arena.dtype != torch.float16 or bool(module.HAS_FLOAT16))


def takes_matrix(tensor: Tensor) -> bool:
    """Whether the sparse kernels run on this tensor."""
    return tensor.is_cpu and tensor.dtype in (torch.float32, torch.bfloat16) and extension() is not None


def gather(arena: Tensor, positions: Tensor) -> Tensor:
    """out[i] = arena[positions[i]]."""
    out = torch.empty(len(positions), dtype=arena.dtype)
    _call("gather", arena, positions, out, arena.element_size())
    return out


def scatter_add_(arena: Tensor, positions: Tensor, values: Tensor) -> None:
    """arena[positions[i]] += values[i], summed in float32 and rounded once to the arena's dtype."""
    _call("scatter_add", arena, positions, values.float().contiguous(), _DTYPES[arena.dtype])


def scatter_copy_(arena: Tensor, positions: Tensor, values: Tensor) -> None:
    """arena[positions[i]] = values[i]."""
    assert values.dtype == arena.dtype, (values.dtype, arena.dtype)
    _call("scatter_copy", arena, positions, values.contiguous(), arena.element_size())


def _call(name: str, arena: Tensor, positions: Tensor, values: Tensor, kind: int) -> None:
    # A mistake here would write into memory that is not the arena's, so what costs nothing is checked again.
    assert arena.is_contiguous() and positions.is_contiguous() and len(values) == len(positions)
    strays = getattr(module_of_kernels(), name)(
        arena.data_ptr(),
        positions.data_ptr(),
        values.data_ptr(),
        kind,
        positions.element_size(),
        len(positions),
        torch.get_num_threads(),
        len(arena),
    )
    torch_ops.refuse_strays(strays)


def compress(positions: Tensor, values: Tensor, rows: int, width: int, transposed: bool = False) -> SparseChange:
    """Entries by flat position to compressed sparse rows."""
    assert positions.is_contiguous() and values.is_contiguous() and values.dtype == torch.float32
    out, inside = (width, rows) if transposed else (rows, width)
    starts = torch.empty(out + 1, dtype=torch.int32)
    columns, sorted_values = torch.empty(len(values), dtype=column_dtype(inside)), torch.empty(len(values))
    order = torch.empty(out, dtype=torch.uint8)
    module_of_kernels().compress(
        positions.data_ptr(),
        positions.element_size(),
        values.data_ptr(),
        len(values),
        rows,
        width,
        int(transposed),
        starts.data_ptr(),
        columns.data_ptr(),
        columns.element_size(),
        sorted_values.data_ptr(),
        order.data_ptr(),
    )
    return SparseChange((out, inside), starts, columns, sorted_values, order=order)


# Called for every module of every mixed batch: the asserts cost less than a microsecond.


def sparse_linear_(y: Tensor, x: Tensor, segments: Segments, changes: Changes[SparseChange]) -> None:
    """y[i] += dW_t x[i] + db_t."""
    assert y.is_contiguous() and y.dtype == x.dtype and y.shape[:-1] == x.shape[:-1]
    _sparse_linear(x, (y.shape[-1], 0, y.data_ptr(), changes.address), segments, fresh=False)


def shared_linear(
    x: Tensor, rows: Tensor, products: Sequence[Tensor], changes: Sequence[Changes[SparseChange]], segments: Segments
) -> list[Tensor]:
    """y[i] = product[rows[i]] + dW_t x[rows[i]] + db_t for every product."""
    assert rows.is_contiguous() and rows.dtype == torch.int64
    ys, table = [], list[int]()
    for product, its in zip(products, changes, strict=True):
        assert product.is_contiguous() and product.dtype == x.dtype and len(product) == len(x)
        ys.append(x.new_empty((len(rows), product.shape[1])))
        table += product.shape[1], product.data_ptr(), ys[-1].data_ptr(), its.address
    _sparse_linear(x, table, segments, fresh=False, rows=rows.data_ptr())
    return ys


def linear(x: Tensor, maps: Sequence[Map], segments: Segments) -> list[Tensor]:
    """y[i] = x[i] (W + dW_t') + b + db_t for every map."""
    # torch, too, copies b to every row of y and adds the product to that. Writing b + dW x + db there in its place
    # leaves only the sums of the changes as extra cost. For 16-bit types torch is fastest when it adds b itself.
    if x.dtype == torch.float32:
        ys, tokens = (
            sparse_linear(x, [(m.weight.shape[1], m.bias, m.changes) for m in maps], segments),
            torch_ops.flat(x),
        )
        for y, m in zip(ys, maps, strict=True):
            torch_ops.flat(y).addmm_(tokens, m.weight)
        return ys
    ys = [torch.nn.functional.linear(x, m.weight.t(), m.bias) for m in maps]
    table: list[int] = []
    for y, m in zip(ys, maps, strict=True):
        out = m.weight.shape[1]
        assert y.is_contiguous() and y.dtype == x.dtype and y.shape == (*x.shape[:-1], out)
        table += out, 0, y.data_ptr(), m.changes.address
    _sparse_linear(x, table, segments, fresh=False)
    return ys


def sparse_linear(x: Tensor, maps: Sequence[Addend], segments: Segments) -> list[Tensor]:
    """y[i] = b + dW_t x[i] + db_t for every map: what a product with W is added to. Every token is in a segment."""
    ys: list[Tensor] = []
    table: list[int] = []
    for out, bias, changes in maps:
        assert bias is None or (bias.shape == (out,) and bias.is_contiguous() and bias.dtype == x.dtype)
        ys.append(x.new_empty((*x.shape[:-1], out)))
        table += out, 0 if bias is None else bias.data_ptr(), ys[-1].data_ptr(), changes.address
    _sparse_linear(x, table, segments, fresh=True)
    return ys


def _sparse_linear(x: Tensor, maps: Sequence[int], segments: Segments, *, fresh: bool, rows: int = 0) -> None:
    """maps: the fields of `struct Map` in sparse.hpp, map after map. fresh: y[i] = b + ... in place of y[i] += ...;
    rows: the address of which row of x and of the products each token has, where there are products."""
    assert x.is_contiguous()
    width, table = x.shape[-1], array("q", maps)
    module_of_kernels().sparse_linear(
        x.data_ptr(),
        _DTYPES[x.dtype],
        width,
        2 if width <= MAX_SHORT_COLUMNS else 4,
        fresh,
        table.buffer_info()[0],
        len(maps) // 4,
        segments.address,
        segments.count,
        torch.get_num_threads(),
        rows,
    )


def sparse_lookup_(y: Tensor, ids: Tensor, segments: Segments, changes: Changes[SparseChange]) -> None:
    """y[i] += dW_t[ids[i]]."""
    tokens, width = y.shape
    assert y.is_contiguous() and ids.is_contiguous() and ids.dtype == torch.int64 and ids.shape == (tokens,)
    module_of_kernels().sparse_lookup(
        ids.data_ptr(),
        y.data_ptr(),
        _DTYPES[y.dtype],
        width,
        2 if width <= MAX_SHORT_COLUMNS else 4,
        segments.address,
        segments.count,
        changes.address,
        torch.get_num_threads(),
    )


def scale_shift_(y: Tensor, segments: Segments, changes: Changes[ScaleShift]) -> None:
    """y[i] = y[i] * w_t + b_t."""
    _, width = y.shape
    assert y.is_contiguous()
    module_of_kernels().scale_shift(
        y.data_ptr(),
        _DTYPES[y.dtype],
        width,
        segments.address,
        segments.count,
        changes.address,
        torch.get_num_threads(),
    )


def layer_norm(x: Tensor, segments: Segments, changes: Changes[ScaleShift], epsilon: float) -> Tensor:
    """y[i] = (x[i] - mean) / sqrt(variance + epsilon) * w_t + b_t."""
    return _norm(x, segments, changes, epsilon, centered=True)


def rms_norm(x: Tensor, segments: Segments, changes: Changes[ScaleShift], epsilon: float) -> Tensor:
    """y[i] = x[i] / sqrt(mean of squares + epsilon) * w_t."""
    return _norm(x, segments, changes, epsilon, centered=False)


def _norm(x: Tensor, segments: Segments, changes: Changes[ScaleShift], epsilon: float, *, centered: bool) -> Tensor:
    assert x.is_contiguous()
    y = torch.empty_like(x)
    module_of_kernels().norm(
        x.data_ptr(),
        y.data_ptr(),
        _DTYPES[x.dtype],
        x.shape[-1],
        segments.address,
        segments.count,
        changes.address,
        epsilon,
        centered,
        torch.get_num_threads(),
    )
    return y
