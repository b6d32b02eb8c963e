"""The kernels' public interface, used by patches and the engine: tensors in, tensors out, no deltas and no tasks.

Each function runs in C++ (`native`), in Triton (`triton_ops`) or in torch (`torch_ops`), by the tensor's device and
dtype and by what is installed; `reference` is the definition that tests compare all of them with.

Gather and scatter take a one-dimensional, contiguous `arena` and one-dimensional, contiguous `positions` into it.
Positions are int64 or int32 and strictly increasing: the caller has checked that, the kernels do not. A position
outside the arena (memory may have damaged it since) is left out: all others are done, then `IndexError` is raised.

The sparse kernels add, for the tokens of each task in a batch, the product with the task's sparse change of a matrix.
A task is named by its slot, its place in the batch's list of tasks. Tensors are contiguous; indices are in range, which
the caller has checked too.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from sparsehub.kernels import native, native_module, torch_ops
from sparsehub.kernels.int8 import (
    MOST_INPUTS,
    Int8Map,
    Int8Rows,
    Int8Weight,
    int8_linear,
    int8_product,
    pack_int8,
    quantise_rows,
)
from sparsehub.kernels.sparse import (
    Changes,
    Map,
    ScaleShift,
    Segments,
    SparseChange,
    changes_of,
    segments_in,
    segments_of,
)

__all__ = [
    "MOST_INPUTS",
    "Changes",
    "Int8Map",
    "Int8Rows",
    "Int8Weight",
    "Map",
    "ScaleShift",
    "Segments",
    "SparseChange",
    "changes_of",
    "compress",
    "gather",
    "int8_linear",
    "int8_product",
    "layer_norm",
    "linear",
    "pack_int8",
    "position_dtype",
    "quantise_rows",
    "reads_tables",
    "rms_norm",
    "scale_shift_",
    "scatter_add_",
    "scatter_copy_",
    "segments_in",
    "segments_of",
    "shared_linear",
    "sparse_linear_",
    "sparse_lookup_",
]


def gather(arena: Tensor, positions: Tensor) -> Tensor:
    """out[i] = arena[positions[i]].

    arena: [n] any dtype; positions: [k] int64 or int32. Returns [k] in the arena's dtype.
    """
    result: Tensor = _kernels(arena).gather(arena, positions)
    return result


def scatter_add_(arena: Tensor, positions: Tensor, values: Tensor) -> None:
    """arena[positions[i]] += values[i], summed in float32 and rounded once to the arena's dtype.

    arena: [n] float32, float16 or bfloat16; positions: [k] int64 or int32, distinct; values: [k] floating.
    """
    _kernels(arena).scatter_add_(arena, positions, values)


def scatter_copy_(arena: Tensor, positions: Tensor, values: Tensor) -> None:
    """arena[positions[i]] = values[i].

    arena: [n] any dtype; positions: [k] int64 or int32, distinct; values: [k] in the arena's dtype.
    """
    _kernels(arena).scatter_copy_(arena, positions, values)


def compress(positions: Tensor, values: Tensor, rows: int, width: int, *, transposed: bool = False) -> SparseChange:
    """Entries of a matrix [rows, width] by their flat positions, as dW in compressed sparse rows (CSR).

    positions: [k] int32 or int64, strictly increasing and in range; values: [k] float32. transposed: dW is the matrix's
    transpose, [width, rows].
    """
    change: SparseChange = _kernels(values, sparse=True).compress(positions, values, rows, width, transposed)
    return change


def sparse_linear_(y: Tensor, x: Tensor, segments: Segments, changes: Changes[SparseChange]) -> None:
    """y[i] += dW_t x[i] + db_t for every token i of every segment, t its slot; summed in float32, rounded once.

    y: [..., out], x: [..., in], one dtype: float32, float16 or bfloat16; every row of them is a token. Tokens outside
    the segments and tasks without a change keep their y.
    """
    _kernels(y, sparse=True).sparse_linear_(y, x, segments, changes)


def linear(x: Tensor, maps: Sequence[Map], segments: Segments) -> list[Tensor]:
    """y[i] = x[i] (W + dW_t') + b + db_t for every map and token i, t its slot; in float32, rounded twice at most.

    x: [..., in] float32, float16 or bfloat16; y: [..., out]. Every token is in a segment; if its task changes nothing,
    y is what the plain product gives, bit for bit. Maps together cost less than one by one.
    """
    result: list[Tensor] = _kernels(x, sparse=True).linear(x, maps, segments)
    return result


def shared_linear(
    x: Tensor, rows: Tensor, products: Sequence[Tensor], changes: Sequence[Changes[SparseChange]], segments: Segments
) -> list[Tensor]:
    """y[i] = product[rows[i]] + dW_t x[rows[i]] + db_t for every product and token i, t its slot; in float32, rounded
    once: what `linear` gives for tokens of which many are made of one, with its product computed once.

    x: [n, in] float32, float16 or bfloat16; rows: [tokens] int64, below n; products: x W + b of each map, [n, out];
    y: [tokens, out]. Every token is in a segment.
    """
    result: list[Tensor] = _kernels(x, sparse=True).shared_linear(x, rows, products, changes, segments)
    return result


def sparse_lookup_(y: Tensor, ids: Tensor, segments: Segments, changes: Changes[SparseChange]) -> None:
    """y[i] += dW_t[ids[i]] for every token i of every segment, t its slot: an embedding's change; db is not read.

    y: [tokens, width] float32, float16 or bfloat16; ids: [tokens] int64; dW_t: [vocabulary, width].
    """
    _kernels(y, sparse=True).sparse_lookup_(y, ids, segments, changes)


def scale_shift_(y: Tensor, segments: Segments, changes: Changes[ScaleShift]) -> None:
    """y[i] = y[i] * w_t + b_t for every token i of every segment, t its slot; in float32, rounded once.

    y: [tokens, width] float32, float16 or bfloat16. Every slot of a segment has a part.
    """
    _kernels(y, sparse=True).scale_shift_(y, segments, changes)


def layer_norm(x: Tensor, segments: Segments, changes: Changes[ScaleShift], epsilon: float) -> Tensor:
    """y[i] = (x[i] - mean(x[i])) / sqrt(variance(x[i]) + epsilon) * w_t + b_t; in float32, rounded once.

    x, y: [..., width] float32, float16 or bfloat16. Every token is in a segment and every slot has a part.
    """
    result: Tensor = _kernels(x, sparse=True).layer_norm(x, segments, changes, epsilon)
    return result


def rms_norm(x: Tensor, segments: Segments, changes: Changes[ScaleShift], epsilon: float) -> Tensor:
    """y[i] = x[i] / sqrt(mean(x[i]^2) + epsilon) * w_t; in float32, rounded once.

    x, y: [..., width] float32, float16 or bfloat16. Every token is in a segment and every slot has a part, without b.
    """
    result: Tensor = _kernels(x, sparse=True).rms_norm(x, segments, changes, epsilon)
    return result


def position_dtype(arena: Tensor) -> torch.dtype:
    """The dtype of positions that is fastest for this arena: half the bytes where the kernels take them as they are."""
    return torch.int32 if _kernels(arena) is not torch_ops and arena.numel() < 1 << 31 else torch.int64


def reads_tables(tensor: Tensor) -> bool:
    """Whether the sparse kernels for this tensor take all that they need of a batch's tasks from address tables, blocks
    and slots in memory: then the same launch serves another batch once these are written again."""
    return _kernels(tensor, sparse=True) is not torch_ops


def _kernels(tensor: Tensor, *, sparse: bool = False) -> ModuleType:
    """The module whose kernels run on this tensor."""
    if tensor.is_cuda:
        return _gpu()
    takes = native.takes_matrix if sparse else native.takes
    return native if takes(tensor) else torch_ops


@functools.cache
def _gpu() -> ModuleType:
    """Triton's kernels, or torch's where Triton is not installed."""
    try:
        return importlib.import_module("sparsehub.kernels.triton_ops")
    except ImportError:
        native_module.log.warning("Triton is not installed, torch's kernels are used on the GPU")
        return torch_ops
