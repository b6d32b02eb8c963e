"""The sparse kernels against the plain reference in float64."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sparsehub import kernels
from sparsehub.kernels import (
    Map,
    ScaleShift,
    SparseChange,
    changes_of,
    native,
    native_module,
    reference,
    segments_of,
    torch_ops,
)
from sparsehub.kernels.sparse import column_dtype

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# (in, out): square, odd, one entry, one row, one column, more rows than a tile, no multiple of anything
SIZES = [(16, 16), (7, 13), (1, 1), (9, 1), (1, 9), (24, 200), (130, 67)]
# tokens of each segment: a few, a block, blocks and a rest, nothing to round
POPULARITY = {
    "distinct": [(slot, 1) for slot in range(9)],
    "uniform": [(slot, 16) for slot in range(4)],
    "zipf": [(0, 70), (1, 23), (2, 9), (3, 4), (4, 3), (5, 2), (6, 1)],
    "identical": [(0, 101)],
    "twice": [(1, 5), (0, 33), (1, 6)],
}


@pytest.fixture(params=["door", "torch", "native"])
def ops(request: pytest.FixtureRequest) -> ModuleType:
    if request.param == "native" and native_module.extension() is None:
        pytest.skip("the native kernels are not built: there was no C++ compiler at install")
    return {"door": kernels, "torch": torch_ops, "native": native}[request.param]


def compressed(matrix: Tensor, bias: Tensor | None = None) -> SparseChange:
    """A dense dW as a change."""
    sparse = matrix.to_sparse_csr()
    columns = sparse.col_indices().to(column_dtype(matrix.shape[1]))
    return SparseChange(tuple(matrix.shape), sparse.crow_indices().int(), columns, sparse.values().float(), bias)


def random_change(inside: int, out: int, density: float, seed: int, bias: bool = True) -> SparseChange:
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(out, inside, generator=generator)
    matrix *= torch.rand(out, inside, generator=generator) < density
    return compressed(matrix, torch.randn(out, generator=generator) if bias else None)


def every_kind_of_change(inside: int, out: int, slot: int) -> SparseChange | None:
    """A weight and a bias, a bias alone, a weight alone, nothing: one after the other."""
    change = random_change(inside, out, 0.2, slot, bias=slot % 4 < 2)
    return [change, SparseChange((0, 0), bias=change.bias), change, None][slot % 4]


def bounds_of(popularity: Sequence[tuple[int, int]], gap: int = 0) -> tuple[list[tuple[int, int, int]], int]:
    """Segments one after the other, `gap` tokens of nobody between them; and how many tokens there are."""
    bounds, start = [], 0
    for slot, count in popularity:
        bounds.append((slot, start, start + count))
        start += count + gap
    return bounds, start + gap


def compare(found: Tensor, expected: Tensor) -> None:
    tolerance = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}[found.dtype]
    torch.testing.assert_close(found.float(), expected.float(), rtol=tolerance, atol=tolerance)


def skip_unless_taken(ops: ModuleType, dtype: torch.dtype) -> None:
    if ops is native and dtype == torch.float16:
        pytest.skip("the native sparse kernels take float32 and bfloat16; the door gives float16 to torch")


@pytest.mark.parametrize("gap", [0, 3])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("popularity", POPULARITY)
@pytest.mark.parametrize("dtype", DTYPES)
def test_sparse_linear_equals_the_reference(
    ops: ModuleType, dtype: torch.dtype, popularity: str, size: tuple[int, int], gap: int
) -> None:
    skip_unless_taken(ops, dtype)
    bounds, tokens = bounds_of(POPULARITY[popularity], gap)
    inside, out = size
    slots = max(slot for slot, _ in POPULARITY[popularity]) + 1
    changes = changes_of([every_kind_of_change(inside, out, slot) for slot in range(slots)])
    generator = torch.Generator().manual_seed(99)
    x = torch.randn(tokens, inside, generator=generator).to(dtype)
    found = torch.randn(tokens, out, generator=generator).to(dtype)
    expected = found.clone()
    segments = segments_of(bounds)
    ops.sparse_linear_(found, x, segments, changes)
    reference.sparse_linear_(expected, x, segments, changes)
    compare(found, expected)
    outside = torch.ones(tokens, dtype=torch.bool)
    for _, start, stop in bounds:
        outside[start:stop] = False
    assert torch.equal(found[outside], expected[outside])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("popularity", POPULARITY)
@pytest.mark.parametrize("dtype", DTYPES)
def test_linear_equals_the_reference(
    ops: ModuleType, dtype: torch.dtype, popularity: str, size: tuple[int, int], bias: bool
) -> None:
    skip_unless_taken(ops, dtype)
    bounds, tokens = bounds_of(POPULARITY[popularity])
    inside, out = size
    slots = max(slot for slot, _ in POPULARITY[popularity]) + 1
    changes = changes_of([every_kind_of_change(inside, out, slot) for slot in range(slots)])
    generator = torch.Generator().manual_seed(98)
    x = torch.randn(tokens, inside, generator=generator).to(dtype)
    weight = torch.randn(out, inside, generator=generator).to(dtype)
    b = torch.randn(out, generator=generator).to(dtype) if bias else None
    (found,) = ops.linear(x, [Map(weight.t(), b, changes)], segments_of(bounds))
    (expected,) = reference.linear(x, [Map(weight.t(), b, changes)], segments_of(bounds))
    scale = expected.abs().max().clamp(min=1)  # sums of many terms: to the size of the largest
    compare(found / scale, expected / scale)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_linear_of_a_task_without_a_change_is_the_plain_product(
    ops: ModuleType, dtype: torch.dtype, bias: bool
) -> None:
    """Bit for bit, beside one that has a change, and of a transposed weight too, as a Conv1D has it."""
    skip_unless_taken(ops, dtype)
    x = torch.randn(3, 10, 40).to(dtype)
    b = torch.randn(70).to(dtype) if bias else None
    segments, changes = segments_of([(0, 0, 17), (1, 17, 30)]), changes_of([None, random_change(40, 70, 0.1, 1)])
    for weight in (torch.randn(70, 40).to(dtype), torch.randn(40, 70).to(dtype).t()):
        (found,) = ops.linear(x, [Map(weight.t(), b, changes)], segments)
        plain = torch.nn.functional.linear(x, weight, b)
        assert found.shape == plain.shape and found.dtype == dtype
        assert torch.equal(found.view(30, 70)[:17], plain.view(30, 70)[:17])
        assert not torch.equal(found.view(30, 70)[17:], plain.view(30, 70)[17:])


@pytest.mark.parametrize("popularity", POPULARITY)
@pytest.mark.parametrize("dtype", DTYPES)
def test_sparse_lookup_equals_the_reference(ops: ModuleType, dtype: torch.dtype, popularity: str) -> None:
    skip_unless_taken(ops, dtype)
    bounds, tokens = bounds_of(POPULARITY[popularity], gap=1)
    slots = max(slot for slot, _ in POPULARITY[popularity]) + 1
    changes = changes_of([random_change(19, 11, 0.3, slot) for slot in range(slots)])
    ids = torch.randint(11, (tokens,), generator=torch.Generator().manual_seed(1))
    found = torch.randn(tokens, 19, generator=torch.Generator().manual_seed(2)).to(dtype)
    expected = found.clone()
    ops.sparse_lookup_(found, ids, segments_of(bounds), changes)
    reference.sparse_lookup_(expected, ids, segments_of(bounds), changes)
    compare(found, expected)


@pytest.mark.parametrize("popularity", POPULARITY)
@pytest.mark.parametrize("dtype", DTYPES)
def test_scale_and_shift_equal_the_reference(ops: ModuleType, dtype: torch.dtype, popularity: str) -> None:
    skip_unless_taken(ops, dtype)
    bounds, tokens = bounds_of(POPULARITY[popularity], gap=2)
    slots = max(slot for slot, _ in POPULARITY[popularity]) + 1
    generator = torch.Generator().manual_seed(5)
    weights, biases = (torch.randn(slots, 37, generator=generator) for _ in range(2))
    parts = [ScaleShift(weights[i], biases[i] if i % 2 else None) for i in range(slots)]
    found = torch.randn(tokens, 37, generator=generator).to(dtype)
    expected = found.clone()
    ops.scale_shift_(found, segments_of(bounds), changes_of(parts))
    reference.scale_shift_(expected, segments_of(bounds), changes_of(parts))
    compare(found, expected)


@pytest.mark.parametrize("width", [1, 7, 16, 37, 384])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm"])
def test_norms_equal_the_reference(ops: ModuleType, norm: str, dtype: torch.dtype, width: int) -> None:
    """Rows far from zero too, where a variance of sums of squares would lose its digits."""
    skip_unless_taken(ops, dtype)
    bounds, tokens = bounds_of(POPULARITY["zipf"])
    generator = torch.Generator().manual_seed(6)
    weights, biases = (torch.randn(7, width, generator=generator) for _ in range(2))
    shifted = [i % 2 == 1 and norm == "layer_norm" for i in range(7)]
    changes = changes_of([ScaleShift(weights[i], biases[i] if shifted[i] else None) for i in range(7)])
    x = (torch.randn(tokens, width, generator=generator) + 30 * (torch.arange(tokens) % 3)[:, None]).to(dtype)
    found = getattr(ops, norm)(x, segments_of(bounds), changes, 1e-5)
    assert found.dtype == dtype
    compare(found, getattr(reference, norm)(x, segments_of(bounds), changes, 1e-5))


def test_rows_of_a_batch_need_not_be_flattened(ops: ModuleType) -> None:
    bounds, changes = [(0, 0, 4), (1, 4, 6)], changes_of([random_change(24, 30, 0.2, slot) for slot in range(2)])
    scales = changes_of([ScaleShift(torch.randn(24), torch.randn(24)) for _ in range(2)])
    x, y = torch.randn(3, 2, 24), torch.randn(3, 2, 30)
    expected = y.view(6, 30).clone()
    ops.sparse_linear_(expected, x.view(6, 24), segments_of(bounds), changes)
    ops.sparse_linear_(y, x, segments_of(bounds), changes)
    assert torch.equal(y.view(6, 30), expected)
    normed = ops.layer_norm(x.view(6, 24), segments_of(bounds), scales, 1e-5)
    assert torch.equal(ops.layer_norm(x, segments_of(bounds), scales, 1e-5).view(6, 24), normed)


ODD = [
    SparseChange((8, 8)),
    SparseChange((8, 8), bias=torch.arange(8.0)),
    compressed(torch.eye(8)[:, :] * torch.tensor([1.0] + [0.0] * 7)),
    compressed(torch.ones(8, 8)),
    compressed(torch.cat([torch.ones(1, 8), torch.zeros(7, 8)])),
    compressed(torch.cat([torch.zeros(8, 7), torch.ones(8, 1)], dim=1), torch.ones(8)),
]


@pytest.mark.parametrize("tokens", [1, 3, 4, 8, 9, 32, 33])
def test_odd_changes(ops: ModuleType, tokens: int) -> None:
    """Nothing, a bias alone, one entry, every entry, one row, one column, no change at all."""
    parts = [*ODD, None]
    bounds, total = bounds_of([(slot, tokens) for slot in range(len(parts))])
    x, found = torch.randn(total, 8), torch.zeros(total, 8)
    expected = found.clone()
    ops.sparse_linear_(found, x, segments_of(bounds), changes_of(parts))
    reference.sparse_linear_(expected, x, segments_of(bounds), changes_of(parts))
    compare(found, expected)
    ids, found = torch.randint(8, (total,)), torch.zeros(total, 8)
    expected = found.clone()
    ops.sparse_lookup_(found, ids, segments_of(bounds), changes_of(parts))
    reference.sparse_lookup_(expected, ids, segments_of(bounds), changes_of(parts))
    compare(found, expected)


def test_more_columns_than_two_bytes_can_number(ops: ModuleType) -> None:
    inside = 70_001
    matrix = torch.zeros(3, inside)
    matrix[0, 0] = matrix[1, 65_536] = matrix[2, 70_000] = 2.0
    changes = changes_of([compressed(matrix)])
    assert changes.parts[0] is not None and changes.parts[0].columns is not None
    assert changes.parts[0].columns.dtype == torch.int32
    x, found = torch.randn(5, inside), torch.zeros(5, 3)
    ops.sparse_linear_(found, x, segments_of([(0, 0, 5)]), changes)
    torch.testing.assert_close(found, 2 * x[:, [0, 65_536, 70_000]])
    wide = torch.zeros(2, inside)
    ops.sparse_lookup_(wide, torch.tensor([1, 2]), segments_of([(0, 0, 2)]), changes)
    assert wide[0, 65_536] == 2.0 and wide[1, 70_000] == 2.0 and wide.sum() == 4.0


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("position_dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (13, 7), (40, 300), (3, 70_001)], ids=str)
def test_compressing_equals_the_reference(
    ops: ModuleType, shape: tuple[int, int], position_dtype: torch.dtype, transposed: bool
) -> None:
    """No entry, one, some, and all of them; rows without any at the beginning, inside and at the end."""
    rows, width = shape
    generator = torch.Generator().manual_seed(4)
    for count in {0, 1, rows * width // 3, min(rows * width, 5_000)}:
        positions = torch.randperm(rows * width, generator=generator)[:count].sort().values.to(position_dtype)
        values = torch.randn(count, generator=generator)
        found = ops.compress(positions, values, rows, width, transposed=transposed)
        expected = reference.compress(positions, values, rows, width, transposed)
        assert found.shape == tuple(expected.shape) and found.columns.dtype == column_dtype(found.shape[1])
        assert torch.equal(found.csr.to_dense(), expected)
        assert found.starts[0] == 0 and found.starts[-1] == count and bool((found.starts.diff() >= 0).all())
        if found.order is not None:
            check_order(found.starts.diff().tolist(), found.order.tolist())


def check_order(entries: list[int], order: list[int]) -> None:
    """Every tile of 64 rows has each of them once, those of more entries first; 31 and more are alike."""
    for first in range(0, len(entries), 64):
        tile, here = order[first : first + 64], entries[first : first + 64]
        assert sorted(tile) == list(range(len(here)))
        assert [min(31, here[row]) for row in tile] == sorted((min(31, n) for n in here), reverse=True)


@pytest.mark.skipif(native_module.extension() is None, reason="the native kernels are not built")
def test_compressed_rows_have_an_order_that_the_kernel_may_miss() -> None:
    """Changes that torch's code compressed have none: the same sums."""
    generator = torch.Generator().manual_seed(5)
    positions = torch.randperm(200 * 30, generator=generator)[:900].sort().values
    values, x = torch.randn(900, generator=generator), torch.randn(16, 30, generator=generator)
    outputs = []
    for ops in (native, torch_ops):
        change = ops.compress(positions, values, 200, 30)
        outputs.append(torch.zeros(16, 200))
        native.sparse_linear_(outputs[-1], x, segments_of([(0, 0, 16)]), changes_of([change]))
    assert torch.equal(*outputs)


@pytest.mark.parametrize("tokens", [2, 40])
def test_threads_share_out_one_segment_without_changing_it(tokens: int) -> None:
    changes = changes_of([random_change(50, 1_000, 0.1, 3)])
    x, segments = torch.randn(tokens, 50), segments_of([(0, 0, tokens)])
    outputs, before = [], torch.get_num_threads()
    for threads in (1, 4):
        torch.set_num_threads(threads)
        try:
            y = torch.zeros(tokens, 1_000)
            kernels.sparse_linear_(y, x, segments, changes)
        finally:
            torch.set_num_threads(before)
        outputs.append(y)
    assert torch.equal(*outputs)


@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(1, 40)), min_size=1, max_size=6),
    st.integers(1, 40),
    st.integers(1, 70),
    st.sampled_from([0.0, 0.02, 0.5, 1.0]),
    st.integers(1, 3),
)
def test_any_batch_of_any_tasks(
    popularity: list[tuple[int, int]], inside: int, out: int, density: float, tokens_a_row: int
) -> None:
    """One input for several maps, as the projections of an attention layer share it."""
    bounds, rows = bounds_of(popularity)
    segments = segments_of(bounds, tokens_a_row)
    x = torch.randn(rows * tokens_a_row, inside)
    maps = []
    for width in (out, inside, 3):
        parts = [random_change(inside, width, density, slot) if slot % 3 else None for slot in range(5)]
        found = torch.randn(rows * tokens_a_row, width)
        expected = found.clone()
        kernels.sparse_linear_(found, x, segments, changes_of(parts))
        reference.sparse_linear_(expected, x, segments, changes_of(parts))
        compare(found, expected)
        weight, bias = torch.randn(width, inside), torch.randn(width)
        maps.append(Map(weight.t(), bias if width == out else None, changes_of(parts)))
    definitions = reference.linear(x, maps, segments)
    for whole, definition in zip(kernels.linear(x, maps, segments), definitions, strict=True):
        compare(whole, definition)
    sources = max(1, rows // 3)  # of which the tokens are made: some of them of the same one
    made_of = torch.randint(sources, (len(x),))
    once, changes = torch.randn(sources, inside), [m.changes for m in maps]
    products = [torch.nn.functional.linear(once, m.weight.t(), m.bias) for m in maps]
    definitions = reference.shared_linear(once, made_of, products, changes, segments)
    found_each = kernels.shared_linear(once, made_of, products, changes, segments)
    for shared, definition in zip(found_each, definitions, strict=True):
        compare(shared, definition)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("popularity", POPULARITY)
def test_tokens_that_are_made_of_fewer_ones(popularity: str, dtype: torch.dtype) -> None:
    """With and without native kernels; tasks that change a weight, a bias, both and nothing."""
    bounds, tokens = bounds_of(POPULARITY[popularity])
    segments, rows = segments_of(bounds), torch.randint(5, (tokens,))
    x = torch.randn(5, 130).to(dtype)
    products = [torch.randn(5, out).to(dtype) for out in (67, 13)]
    changes = [changes_of([every_kind_of_change(130, out, slot) for slot in range(9)]) for out in (67, 13)]
    expected = reference.shared_linear(x, rows, products, changes, segments)
    before = [product.clone() for product in products]
    plain = torch_ops.shared_linear(x, rows, products, changes, segments)
    for way in (kernels.shared_linear(x, rows, products, changes, segments), plain):
        for y, definition in zip(way, expected, strict=True):
            compare(y, definition)
    assert all(map(torch.equal, products, before))
