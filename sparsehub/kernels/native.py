"""The kernels in C++ for the CPU, called by `sparsehub.kernels`, which states their contracts.

The extension is built at install where there is a compiler. Where it was not, `takes` and `takes_matrix` are False, one
warning is logged, and `sparsehub.kernels` uses torch. It uses the best instruction set that the CPU has, or the one
that the environment's `SPARSEHUB_CPU` names.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import logging
import os
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from sparsehub.errors import UsageError
from sparsehub.kernels import torch_ops
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
INSTRUCTION_SETS = ("plain", "avx2", "avx512")  # in the order of `enum InstructionSet` in cpu.hpp
FORCED = "SPARSEHUB_CPU"
Addend = tuple[
    int, Tensor | None, Changes[SparseChange]
]  # of a linear map: its outputs, b [out] and each task's change
log = logging.getLogger("sparsehub")


@dataclass(frozen=True)
class Machine:
    """What the kernels know of the machine that they run on; printed by benchmarks, changed by tests."""

    instruction_set: str  # in use: one of INSTRUCTION_SETS
    available: tuple[str, ...]  # those that the CPU has
    second_cache: int  # bytes of a core's second-level cache: how many tokens are packed together follows from it


@functools.cache
def extension() -> ModuleType | None:
    """The compiled module, or None where it was not built. Raises `UsageError` where `SPARSEHUB_CPU` cannot be had."""
    try:
        module = importlib.import_module("sparsehub.kernels._native")
    except ImportError:
        log.warning("the native kernels are not built, torch's are used; install sparsehub again with a C++ compiler")
        return None
    if forced := os.environ.get(FORCED):
        if not hasattr(module, "choose"):
            fix = "install sparsehub again"
            raise UsageError(f"{FORCED} is set, and the native kernels are of an older build", found=forced, fix=fix)
        _choose(module, forced)
    return module


def exports() -> bool:
    """Whether programs that are loaded from now on find the kernels as plain C functions (`exported.hpp`)."""
    module = extension()
    if module is None or module.__file__ is None:
        return False
    try:
        return hasattr(ctypes.CDLL(module.__file__, ctypes.RTLD_GLOBAL), "sparsehub_int8_linear")
    except OSError:
        return False


def machine() -> Machine:
    """The machine, and what is in use of it."""
    used, there, second_cache = _module().machine()
    available = tuple(name for name, has in zip(INSTRUCTION_SETS, there, strict=True) if has)
    return Machine(INSTRUCTION_SETS[used], available, second_cache)


def choose(instruction_set: str, second_cache: int | None = None) -> None:
    """Use another instruction set from now on, or another size of the second cache (bytes) than the machine's.

    For tests and benchmarks, while no kernel runs. Raises `UsageError` where the CPU does not have it.
    """
    _choose(_module(), instruction_set, second_cache)


def _choose(module: ModuleType, instruction_set: str, second_cache: int | None = None) -> None:
    _, there, known = module.machine()
    available = [name for name, has in zip(INSTRUCTION_SETS, there, strict=True) if has]
    if instruction_set not in available:
        expected = f"one of those that this CPU has: {', '.join(available)}"
        raise UsageError("the kernels cannot use this instruction set", found=instruction_set, expected=expected)
    module.choose(INSTRUCTION_SETS.index(instruction_set), known if second_cache is None else second_cache)


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
    strays = getattr(_module(), name)(
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
    _module().compress(
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


def linear(x: Tensor, maps: Sequence[Map], segments: Segments, products: Sequence[Tensor] = ()) -> list[Tensor]:
    """y[i] = x[i] (W + dW_t') + b + db_t for every map."""
    # torch, too, copies b to every row of y and adds the product to that. Writing b + dW x + db there in its place
    # leaves only the sums of the changes as extra cost. For 16-bit types torch is fastest when it adds b itself.
    if not products and x.dtype == torch.float32:
        ys, tokens = (
            sparse_linear(x, [(m.weight.shape[1], m.bias, m.changes) for m in maps], segments),
            torch_ops.flat(x),
        )
        for y, m in zip(ys, maps, strict=True):
            torch_ops.flat(y).addmm_(tokens, m.weight)
        return ys
    ys = list(products) or [torch.nn.functional.linear(x, m.weight.t(), m.bias) for m in maps]
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


def _sparse_linear(x: Tensor, maps: Sequence[int], segments: Segments, *, fresh: bool) -> None:
    """maps: the fields of `struct Map` in sparse.hpp, map after map. fresh: y[i] = b + ... in place of y[i] += ..."""
    assert x.is_contiguous()
    width, table = x.shape[-1], array("q", maps)
    _module().sparse_linear(
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
    )


def sparse_lookup_(y: Tensor, ids: Tensor, segments: Segments, changes: Changes[SparseChange]) -> None:
    """y[i] += dW_t[ids[i]]."""
    tokens, width = y.shape
    assert y.is_contiguous() and ids.is_contiguous() and ids.dtype == torch.int64 and ids.shape == (tokens,)
    _module().sparse_lookup(
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
    _module().scale_shift(
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
    _module().norm(
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


def _module() -> ModuleType:
    module = extension()
    assert module is not None  # `sparsehub.kernels` calls these functions only where `takes` is True
    return module
