"""The kernels for GPUs, in Triton, called by `sparsehub.kernels`, which states their contracts.

Everything that a launch depends on is in device memory (the table of addresses, the blocks of tokens), so a captured
CUDA graph can replay a launch with other tasks. Each output is written by one program: no atomics, the same result each
time. Under TRITON_INTERPRET=1 they run on a CPU, slowly.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparsehub.kernels import torch_ops
from sparsehub.kernels.launch import launch
from sparsehub.kernels.sparse import ADDRESSES, MAX_SHORT_COLUMNS, Changes, Map, ScaleShift, Segments, SparseChange

ENTRIES = 1024  # of a gather or scatter, for each program
ROWS, WIDTH = 64, 1024  # rows of dW, and columns of y, for each program
SEVERAL = 8  # entries of a row at once, where a block has one token
# Prefill: from so many tokens of one task x is turned to feature-major order first. An entry of dW then reads its
# tokens' values side by side; from x as it is each of them takes a sector of 32 bytes, of which 2 or 4 are used.
MANY = 8
NEIGHBOURS, TOGETHER = 16, 4  # rows of dW for each program, one sector of a token's y; entries of a row at once

compress = torch_ops.compress


@triton.jit
def _gather(arena, positions, out, count, BLOCK: tl.constexpr):  # noqa: N803
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < count
    p = tl.load(positions + i, mask=inside, other=0)
    tl.store(out + i, tl.load(arena + p, mask=inside), mask=inside)


@triton.jit
def _scatter_copy(arena, positions, values, count, BLOCK: tl.constexpr):  # noqa: N803
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < count
    p = tl.load(positions + i, mask=inside, other=0)
    tl.store(arena + p, tl.load(values + i, mask=inside), mask=inside)


@triton.jit
def _scatter_add(arena, positions, values, count, BLOCK: tl.constexpr):  # noqa: N803
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < count
    p = tl.load(positions + i, mask=inside, other=0)
    total = tl.load(arena + p, mask=inside, other=0).to(tl.float32) + tl.load(values + i, mask=inside, other=0)
    tl.store(arena + p, total.to(arena.dtype.element_ty), mask=inside)


@triton.jit
def _sparse_linear(
    x,
    y,
    table,
    blocks,
    inside,
    out,
    FIELDS: tl.constexpr,  # noqa: N803
    SHORT: tl.constexpr,  # noqa: N803
    R: tl.constexpr,  # noqa: N803
    T: tl.constexpr,  # noqa: N803
    K: tl.constexpr,  # noqa: N803
):
    """R rows of dW for the T tokens of one block; K entries of each row at once (where T is 1)."""
    block = blocks + tl.program_id(0) * 3
    matrix = table + tl.load(block) * FIELDS
    starts_at, bias_at, order_at = tl.load(matrix), tl.load(matrix + 3), tl.load(matrix + 4)
    place = tl.program_id(1) * R + tl.arange(0, R)
    real = place < out
    row = place
    if order_at != 0:  # rows of like length together, so that none of these waits for a long one
        row = tl.load(order_at.to(tl.pointer_type(tl.int32)) + place, mask=real, other=0)
    token = tl.arange(0, T)
    live = token < tl.load(block + 2)
    token = tl.load(block + 1) + token
    sums = tl.zeros((R, T), tl.float32)
    if bias_at != 0:
        bias = tl.load(bias_at.to(tl.pointer_type(tl.float32)) + row, mask=real, other=0)
        sums += bias[:, None]
    if starts_at != 0:
        starts = starts_at.to(tl.pointer_type(tl.int32))
        first = tl.load(starts + row, mask=real, other=0)
        length = tl.load(starts + row + 1, mask=real, other=0) - first
        values = tl.load(matrix + 2).to(tl.pointer_type(x.dtype.element_ty))
        if SHORT:
            columns = tl.load(matrix + 1).to(tl.pointer_type(tl.uint16))
        else:
            columns = tl.load(matrix + 1).to(tl.pointer_type(tl.int32))
        for k in range(0, tl.max(length, 0), K):
            step = k + tl.arange(0, K)
            entry = first[:, None] + step[None, :]
            has = (step[None, :] < length[:, None]) & real[:, None]
            column = tl.load(columns + entry, mask=has, other=0).to(tl.int64)
            value = tl.load(values + entry, mask=has, other=0).to(tl.float32)
            if T == 1:
                seen = tl.load(x + token * inside + column, mask=has, other=0).to(tl.float32)
                sums += tl.sum(value * seen, 1)[:, None]
            else:
                seen = tl.load(x + token[None, :] * inside + column, mask=has & live[None, :], other=0).to(tl.float32)
                sums += value * seen
    at = y + token[None, :] * out + row[:, None]
    mask = real[:, None] & live[None, :]
    tl.store(at, (tl.load(at, mask=mask, other=0).to(tl.float32) + sums).to(y.dtype.element_ty), mask=mask)


@triton.jit
def _sparse_prefill(
    features,
    y,
    table,
    blocks,
    tokens,
    out,
    FIELDS: tl.constexpr,  # noqa: N803
    SHORT: tl.constexpr,  # noqa: N803
    R: tl.constexpr,  # noqa: N803
    T: tl.constexpr,  # noqa: N803
    K: tl.constexpr,  # noqa: N803
):
    """R neighbouring rows of dW for the T tokens of one block; K entries of a row at once. features: [in, tokens]."""
    block = blocks + tl.program_id(0) * 3
    matrix = table + tl.load(block) * FIELDS
    starts_at, bias_at = tl.load(matrix), tl.load(matrix + 3)
    row = tl.program_id(1) * R + tl.arange(0, R)
    real = row < out
    token = tl.arange(0, T)
    live = token < tl.load(block + 2)
    token = tl.load(block + 1) + token
    sums = tl.zeros((R, T), tl.float32)
    if bias_at != 0:
        bias = tl.load(bias_at.to(tl.pointer_type(tl.float32)) + row, mask=real, other=0)
        sums += bias[:, None]
    if starts_at != 0:
        starts = starts_at.to(tl.pointer_type(tl.int32))
        first = tl.load(starts + row, mask=real, other=0)
        length = tl.load(starts + row + 1, mask=real, other=0) - first
        values = tl.load(matrix + 2).to(tl.pointer_type(features.dtype.element_ty))
        if SHORT:
            columns = tl.load(matrix + 1).to(tl.pointer_type(tl.uint16))
        else:
            columns = tl.load(matrix + 1).to(tl.pointer_type(tl.int32))
        for k in range(0, tl.max(length, 0), K):
            step = k + tl.arange(0, K)
            entry = first[:, None] + step[None, :]
            has = (step[None, :] < length[:, None]) & real[:, None]
            column = tl.load(columns + entry, mask=has, other=0).to(tl.int64)
            value = tl.load(values + entry, mask=has, other=0).to(tl.float32)
            at = features + column[:, :, None] * tokens + token[None, None, :]
            seen = tl.load(at, mask=has[:, :, None] & live[None, None, :], other=0).to(tl.float32)
            sums += tl.sum(value[:, :, None] * seen, 1)
    at = y + token[None, :] * out + row[:, None]
    mask = real[:, None] & live[None, :]
    tl.store(at, (tl.load(at, mask=mask, other=0).to(tl.float32) + sums).to(y.dtype.element_ty), mask=mask)


@triton.jit
def _sparse_lookup(ids, y, table, slots, width, FIELDS: tl.constexpr, SHORT: tl.constexpr, K: tl.constexpr):  # noqa: N803
    """The changed entries of one looked-up row. slots: [tokens] int32, -1 where a token belongs to no task."""
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + token)
    if slot >= 0:
        matrix = table + slot * FIELDS
        starts_at = tl.load(matrix)
        if starts_at != 0:
            row = starts_at.to(tl.pointer_type(tl.int32)) + tl.load(ids + token)
            first, last = tl.load(row), tl.load(row + 1)
            values = tl.load(matrix + 2).to(tl.pointer_type(y.dtype.element_ty))
            if SHORT:
                columns = tl.load(matrix + 1).to(tl.pointer_type(tl.uint16))
            else:
                columns = tl.load(matrix + 1).to(tl.pointer_type(tl.int32))
            for k in range(first, last, K):
                entry = k + tl.arange(0, K)
                has = entry < last
                at = y + token * width + tl.load(columns + entry, mask=has, other=0).to(tl.int64)
                total = tl.load(at, mask=has, other=0).to(tl.float32)
                total += tl.load(values + entry, mask=has, other=0).to(tl.float32)
                tl.store(at, total.to(y.dtype.element_ty), mask=has)


@triton.jit
def _scale_shift(y, table, slots, width, FIELDS: tl.constexpr, W: tl.constexpr):  # noqa: N803
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + token)
    if slot >= 0:
        column = tl.program_id(1) * W + tl.arange(0, W)
        inside = column < width
        weight = tl.load(table + slot * FIELDS).to(tl.pointer_type(tl.float32))
        bias_at = tl.load(table + slot * FIELDS + 3)
        at = y + token * width + column
        value = tl.load(at, mask=inside, other=0).to(tl.float32) * tl.load(weight + column, mask=inside, other=0)
        if bias_at != 0:
            value += tl.load(bias_at.to(tl.pointer_type(tl.float32)) + column, mask=inside, other=0)
        tl.store(at, value.to(y.dtype.element_ty), mask=inside)


def gather(arena: Tensor, positions: Tensor) -> Tensor:
    """out[i] = arena[positions[i]]."""
    out = torch.empty(positions.shape[0], dtype=arena.dtype, device=arena.device)
    _over_entries(_gather, arena, positions, out)
    return out


def scatter_add_(arena: Tensor, positions: Tensor, values: Tensor) -> None:
    """arena[positions[i]] += values[i], summed in float32 and rounded once."""
    positions, values, strays = torch_ops.inside(arena, positions, values)
    _over_entries(_scatter_add, arena, positions, values.float())
    torch_ops.refuse_strays(strays)


def scatter_copy_(arena: Tensor, positions: Tensor, values: Tensor) -> None:
    """arena[positions[i]] = values[i]."""
    positions, values, strays = torch_ops.inside(arena, positions, values)
    _over_entries(_scatter_copy, arena, positions, values)
    torch_ops.refuse_strays(strays)


def _over_entries(kernel: triton.JITFunction, arena: Tensor, positions: Tensor, values: Tensor) -> None:
    count = positions.shape[0]
    if count:
        launch(kernel, (triton.cdiv(count, ENTRIES),), arena, positions, values, count, BLOCK=ENTRIES)


def sparse_linear_(y: Tensor, x: Tensor, segments: Segments, changes: Changes[SparseChange]) -> None:
    """y[i] += dW_t x[i] + db_t."""
    if segments.most >= MANY:
        _adder(x, segments)(y, x, segments, changes)
    elif segments.count:
        entries = SEVERAL if segments.most == 1 else 1
        _over_blocks(_sparse_linear, ROWS, entries, y, torch_ops.flat(x), x.shape[-1], segments, changes)


def linear(x: Tensor, maps: Sequence[Map], segments: Segments) -> list[Tensor]:
    """y[i] = x[i] (W + dW_t') + b + db_t for every map."""
    return torch_ops.linear(x, maps, segments, _adder)


def shared_linear(
    x: Tensor, rows: Tensor, products: Sequence[Tensor], changes: Sequence[Changes[SparseChange]], segments: Segments
) -> list[Tensor]:
    """y[i] = product[rows[i]] + dW_t x[rows[i]] + db_t for every product."""
    return torch_ops.shared_linear(x, rows, products, changes, segments, _adder)


def _adder(x: Tensor, segments: Segments) -> torch_ops.SparseLinear:
    """`sparse_linear_` for several changes of one input, which is laid out for long segments once."""
    if segments.most < MANY:
        return sparse_linear_
    return functools.partial(_prefill, features=torch_ops.flat(x).t().contiguous())  # [in, tokens]


def _prefill(y: Tensor, x: Tensor, segments: Segments, changes: Changes[SparseChange], *, features: Tensor) -> None:
    """What `sparse_linear_` does, with x in feature-major order too."""
    _over_blocks(_sparse_prefill, NEIGHBOURS, TOGETHER, y, features, x.shape[-1], segments, changes)


def _over_blocks(
    kernel: triton.JITFunction,
    rows: int,
    entries: int,
    y: Tensor,
    x: Tensor,
    inside: int,
    segments: Segments,
    changes: Changes[SparseChange],
) -> None:
    """A program for each block of tokens and so many rows of dW. x: [tokens, in] or [in, tokens], by the kernel."""
    y = torch_ops.flat(y)
    grid = (segments.count, triton.cdiv(y.shape[1], rows))
    given = x, y, changes.tables[changes.module], segments.blocks_on(y.device), x.shape[1], y.shape[1]
    short, most = inside <= MAX_SHORT_COLUMNS, triton.next_power_of_2(segments.most)
    launch(kernel, grid, *given, FIELDS=ADDRESSES, SHORT=short, R=rows, T=most, K=entries)


def sparse_lookup_(y: Tensor, ids: Tensor, segments: Segments, changes: Changes[SparseChange]) -> None:
    """y[i] += dW_t[ids[i]]."""
    tokens, width = y.shape
    table, slots = changes.tables[changes.module], segments.slots_on(y.device, tokens)
    short = width <= MAX_SHORT_COLUMNS
    launch(_sparse_lookup, (tokens,), ids, y, table, slots, width, FIELDS=ADDRESSES, SHORT=short, K=SEVERAL)


def scale_shift_(y: Tensor, segments: Segments, changes: Changes[ScaleShift]) -> None:
    """y[i] = y[i] * w_t + b_t."""
    tokens, width = y.shape
    table, slots = changes.tables[changes.module], segments.slots_on(y.device, tokens)
    launch(_scale_shift, (tokens, triton.cdiv(width, WIDTH)), y, table, slots, width, FIELDS=ADDRESSES, W=WIDTH)


layer_norm = functools.partial(torch_ops.layer_norm, scale=scale_shift_)
rms_norm = functools.partial(torch_ops.rms_norm, scale=scale_shift_)
