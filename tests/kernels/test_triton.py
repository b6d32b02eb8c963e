"""The GPU kernels against the plain reference: on a GPU where there is one, else in Triton's interpreter."""

from __future__ import annotations

import dataclasses
import importlib
from types import ModuleType

import pytest
import torch
from torch import Tensor

from sparsehub.kernels import (
    Changes,
    Map,
    ScaleShift,
    SparseChange,
    changes_of,
    reference,
    segments_in,
    segments_of,
    torch_ops,
)
from sparsehub.kernels.sparse import for_gpu

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Triton's interpreter has no bfloat16 arithmetic worth the name on every release; a GPU does.
DTYPES = [torch.float32, torch.float16, *([torch.bfloat16] if DEVICE == "cuda" else [])]
TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 2e-2}
POPULARITY = {
    "decode": [(2, 1), (0, 1), (1, 1)],
    "few": [(0, 3), (2, 7), (1, 2)],
    "prefill": [(0, 5), (2, 1), (1, 19)],
    "one": [(1, 33)],
}


@pytest.fixture(scope="module")
def ops() -> ModuleType:
    pytest.importorskip("triton")
    return importlib.import_module("sparsehub.kernels.triton_ops")


def random_change(inside: int, out: int, dtype: torch.dtype, seed: int, bias: bool = True) -> SparseChange:
    """Uneven rows: some without entries, one with all of them."""
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.rand(out, inside, generator=generator) < torch.rand(out, 1, generator=generator) ** 3
    matrix[out // 2] = True
    positions = torch.nonzero(matrix.flatten()).flatten()
    values = torch.randn(len(positions), generator=generator).to(dtype).float()
    change = torch_ops.compress(positions, values, out, inside)
    offset = torch.randn(out, generator=generator) if bias else None
    return for_gpu(dataclasses.replace(change, bias=offset), dtype)


def moved(part: SparseChange | ScaleShift) -> SparseChange | ScaleShift:
    tensors = {k: v.to(DEVICE) for k, v in vars(part).items() if isinstance(v, Tensor)}
    return dataclasses.replace(part, **tensors)


def compare(found: Tensor, expected: Tensor) -> None:
    tolerance = TOLERANCE[found.dtype]
    torch.testing.assert_close(found.cpu().float(), expected.float(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("positions", [torch.int32, torch.int64])
@pytest.mark.parametrize("dtype", DTYPES)
def test_gather_and_scatter(ops: ModuleType, dtype: torch.dtype, positions: torch.dtype) -> None:
    arena = torch.randn(9_000).to(dtype)
    places, values = torch.randperm(9_000)[:2_500].sort().values.to(positions), torch.randn(2_500)
    there, where = arena.clone().to(DEVICE), places.to(DEVICE)
    saved = ops.gather(there, where)
    assert torch.equal(saved.cpu(), reference.gather(arena, places))
    ops.scatter_add_(there, where, values.to(DEVICE))
    expected = arena.clone()
    torch_ops.scatter_add_(expected, places, values)
    assert torch.equal(there.cpu(), expected)
    ops.scatter_copy_(there, where, saved)
    assert torch.equal(there.cpu(), arena)
    ops.scatter_add_(there, where[:0], values[:0].to(DEVICE))
    assert torch.equal(there.cpu(), arena)


@pytest.mark.parametrize("size", [(16, 16), (7, 130), (1, 1)], ids=str)
@pytest.mark.parametrize("popularity", POPULARITY)
@pytest.mark.parametrize("dtype", DTYPES)
def test_sparse_linear(ops: ModuleType, dtype: torch.dtype, popularity: str, size: tuple[int, int]) -> None:
    (inside, out), bounds, start = size, [], 1  # the first token is nobody's
    for slot, count in POPULARITY[popularity]:
        bounds.append((slot, start, start + count))
        start += count
    parts = [random_change(inside, out, dtype, 1), None, random_change(inside, out, dtype, 2, bias=False)]
    if popularity == "one":
        parts[1] = SparseChange((out, inside), bias=torch.randn(out))
    x, y = torch.randn(start, inside).to(dtype), torch.randn(start, out).to(dtype)
    expected = y.clone()
    reference.sparse_linear_(expected, x, segments_of(bounds), changes_of(parts))
    there = [None if part is None else moved(part) for part in parts]
    found = y.clone().to(DEVICE)
    ops.sparse_linear_(found, x.to(DEVICE), segments_of(bounds), changes_of(there, DEVICE))
    compare(found, expected)
    assert torch.equal(found[0].cpu(), y[0])


@pytest.mark.parametrize("most", [1, 2, 8])
def test_the_same_launch_serves_other_tasks_once_its_memory_is_written_again(ops: ModuleType, most: int) -> None:
    """As a replayed graph does: tables, blocks and slots at the same addresses, as many blocks, and padding that no
    task changes in slot 0. Some blocks only fill up, and have no tokens."""
    parts = [None, *(random_change(24, 12, torch.float32, seed) for seed in range(3))]
    norms = [ScaleShift(torch.randn(12), torch.randn(12)) for _ in parts]
    tables, blocks = torch.zeros(2, 4, 5, dtype=torch.int64, device=DEVICE), torch.zeros(8, 3, dtype=torch.int64)
    blocks, slots = blocks.to(DEVICE), torch.zeros(8, dtype=torch.int32, device=DEVICE)
    segments = segments_in([(0, 0, 8)], blocks, slots, most)
    for order in ([1, 2, 3], [3, 1, 1], [2, 0, 2]):
        bounds = [(slot, i * most, min((i + 1) * most, 7)) for i, slot in enumerate(order) if i * most < 7]
        bounds.append((0, bounds[-1][2], 8))
        its = [(slot, token, min(most, stop - token)) for slot, i, stop in bounds for token in range(i, stop, most)]
        blocks.copy_(torch.tensor(its + [(0, 0, 0)] * (8 - len(its))))
        slots.copy_(torch.tensor([slot for slot, start, stop in bounds for _ in range(start, stop)]))
        there = [None if part is None else moved(part) for part in parts]
        scales = [moved(norm) for norm in norms]
        tables.copy_(torch.cat([changes_of(there, DEVICE).tables, changes_of(scales, DEVICE).tables]))
        linear, norm = (Changes((), tables, module, tables[module].data_ptr()) for module in range(2))
        x, y = torch.randn(8, 24), torch.randn(8, 12)
        expected = y.clone()
        reference.sparse_linear_(expected, x, segments_of(bounds), changes_of(parts))
        reference.scale_shift_(expected, segments_of(bounds), changes_of(norms))
        found = y.clone().to(DEVICE)
        ops.sparse_linear_(found, x.to(DEVICE), segments, linear)
        ops.scale_shift_(found, segments, norm)
        scale = expected.abs().max()
        compare(found / scale, expected / scale)


@pytest.mark.parametrize("tokens", [4, 11])
@pytest.mark.parametrize("dtype", DTYPES)
def test_linear(ops: ModuleType, dtype: torch.dtype, tokens: int) -> None:
    """Two maps of one input, one of them without a bias; a few tokens of the task that changes something, and many."""
    x, segments = torch.randn(tokens + 5, 24).to(dtype), segments_of([(0, 0, tokens), (1, tokens, tokens + 5)])
    found, expected = [], []
    for out, bias in ((12, torch.randn(12).to(dtype)), (33, None)):
        weight, part = torch.randn(24, out).to(dtype), random_change(24, out, dtype, out)
        expected.append(Map(weight, bias, changes_of([part, None])))
        there = changes_of([moved(part), None], DEVICE)
        found.append(Map(weight.to(DEVICE), None if bias is None else bias.to(DEVICE), there))
    ys = ops.linear(x.to(DEVICE), found, segments)
    for y, definition in zip(ys, reference.linear(x, expected, segments), strict=True):
        scale = definition.abs().max()  # sums of many terms: to the size of the largest
        compare(y / scale, definition / scale)


@pytest.mark.parametrize("tokens", [4, 11])
def test_shared_linear(ops: ModuleType, tokens: int) -> None:
    """Tokens that are made of one another's; of two maps, a few tokens of the task that changes something, and many."""
    x, segments = torch.randn(3, 24), segments_of([(0, 0, tokens), (1, tokens, tokens + 5)])
    rows, products = torch.arange(tokens + 5) % 3, [torch.randn(3, 12), torch.randn(3, 33)]
    parts = [random_change(24, product.shape[1], torch.float32, product.shape[1]) for product in products]
    there = [changes_of([moved(part), None], DEVICE) for part in parts]
    moved_products = [product.to(DEVICE) for product in products]
    ys = ops.shared_linear(x.to(DEVICE), rows.to(DEVICE), moved_products, there, segments)
    expected = [changes_of([part, None]) for part in parts]
    for y, right in zip(ys, reference.shared_linear(x, rows, products, expected, segments), strict=True):
        scale = right.abs().max()
        compare(y / scale, right / scale)


@pytest.mark.parametrize("dtype", DTYPES)
def test_sparse_lookup(ops: ModuleType, dtype: torch.dtype) -> None:
    bounds = [(0, 0, 4), (1, 4, 6), (2, 7, 12)]
    parts = [random_change(19, 11, dtype, 1), None, random_change(19, 11, dtype, 2)]
    ids, y = torch.randint(11, (12,)), torch.randn(12, 19).to(dtype)
    expected = y.clone()
    reference.sparse_lookup_(expected, ids, segments_of(bounds), changes_of(parts))
    there = [None if part is None else moved(part) for part in parts]
    found = y.clone().to(DEVICE)
    ops.sparse_lookup_(found, ids.to(DEVICE), segments_of(bounds), changes_of(there, DEVICE))
    compare(found, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_scale_and_shift(ops: ModuleType, dtype: torch.dtype) -> None:
    bounds = [(1, 0, 3), (0, 4, 9)]
    parts = [ScaleShift(torch.randn(37), torch.randn(37)), ScaleShift(torch.randn(37))]
    y = torch.randn(9, 37).to(dtype)
    expected = y.clone()
    reference.scale_shift_(expected, segments_of(bounds), changes_of(parts))
    found = y.clone().to(DEVICE)
    ops.scale_shift_(found, segments_of(bounds), changes_of([moved(part) for part in parts], DEVICE))
    compare(found, expected)
    assert torch.equal(found[3].cpu(), y[3])


def test_more_columns_than_two_bytes_can_number(ops: ModuleType) -> None:
    positions = torch.tensor([0, 70_001 + 65_536, 2 * 70_001 + 70_000])
    change = for_gpu(torch_ops.compress(positions, torch.full((3,), 2.0), 3, 70_001), torch.float32)
    assert change.columns is not None and change.columns.dtype == torch.int32
    x, found = torch.randn(2, 70_001), torch.zeros(2, 3, device=DEVICE)
    ops.sparse_linear_(found, x.to(DEVICE), segments_of([(0, 0, 2)]), changes_of([moved(change)], DEVICE))
    torch.testing.assert_close(found.cpu(), 2 * x[:, [0, 65_536, 70_000]])
