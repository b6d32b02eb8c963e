from __future__ import annotations

import shutil
import sys
from types import ModuleType

import pytest
import torch

from sparsehub import kernels
from sparsehub.kernels import native, native_module, reference, torch_ops

ARENA_DTYPES = [torch.float32, torch.float16, torch.bfloat16]
POSITION_DTYPES = [torch.int64, torch.int32]
SIZES = [(1, 0), (1, 1), (17, 7), (64, 64), (120_001, 40_000)]  # entries of the arena, positions


def random_arena(size: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)).to(dtype)


def random_positions(size: int, count: int, dtype: torch.dtype) -> torch.Tensor:
    order = torch.randperm(size, generator=torch.Generator().manual_seed(1))
    return order[:count].sort().values.to(dtype)


@pytest.fixture(params=[kernels, torch_ops, native], ids=["door", "torch", "native"])
def ops(request: pytest.FixtureRequest) -> ModuleType:
    if request.param is native and native_module.extension() is None:
        pytest.skip("the native kernels are not built: there was no C++ compiler at install")
    return request.param


def test_the_native_kernels_are_built_where_there_is_a_compiler() -> None:
    """The extension is optional, so a build that broke would install in silence."""
    if shutil.which("c++") is None and shutil.which("g++") is None:
        pytest.skip("no C++ compiler here")
    assert native_module.extension() is not None


@pytest.mark.parametrize("dtype", ARENA_DTYPES)
def test_threads_change_nothing(dtype: torch.dtype) -> None:
    """Enough entries that the native kernels share them out."""
    threads = torch.get_num_threads()
    positions, values = random_positions(200_000, 50_000, torch.int32), random_arena(50_000, torch.float32, seed=2)
    found, expected = random_arena(200_000, dtype), random_arena(200_000, dtype)
    torch.set_num_threads(3)
    try:
        saved = kernels.gather(found, positions)
        kernels.scatter_add_(found, positions, values)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(saved, torch_ops.gather(expected, positions))
    torch_ops.scatter_add_(expected, positions, values)
    assert torch.equal(found, expected)


def test_without_the_extension_torch_takes_over_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "sparsehub.kernels._native", None)
    native_module.extension.cache_clear()
    try:
        arena = torch.zeros(4)
        kernels.scatter_add_(arena, torch.tensor([1, 2]), torch.ones(2))
        kernels.scatter_copy_(arena, torch.tensor([2]), torch.full((1,), 5.0))
        assert arena.tolist() == [0.0, 1.0, 5.0, 0.0]
        assert kernels.position_dtype(arena) == torch.int64
        assert caplog.text.count("native kernels are not built") == 1
    finally:
        native_module.extension.cache_clear()


def test_an_arena_that_is_not_contiguous_is_refused_before_a_byte_is_written() -> None:
    if native_module.extension() is None:
        pytest.skip("the native kernels are not built")
    arena = torch.zeros(8)[::2]
    with pytest.raises(AssertionError):
        native.scatter_add_(arena, torch.tensor([0]), torch.ones(1))
    assert arena.tolist() == [0.0] * 4


@pytest.mark.parametrize(("size", "count"), SIZES)
@pytest.mark.parametrize("position_dtype", POSITION_DTYPES)
@pytest.mark.parametrize("dtype", ARENA_DTYPES)
def test_gather_equals_the_reference(
    ops: ModuleType, dtype: torch.dtype, position_dtype: torch.dtype, size: int, count: int
) -> None:
    arena, positions = random_arena(size, dtype), random_positions(size, count, position_dtype)
    found = ops.gather(arena, positions)
    assert found.dtype == dtype
    assert found.shape == (count,)
    assert torch.equal(found, reference.gather(arena, positions))


@pytest.mark.parametrize(("size", "count"), SIZES)
@pytest.mark.parametrize("position_dtype", POSITION_DTYPES)
@pytest.mark.parametrize("dtype", ARENA_DTYPES)
def test_scatter_add_equals_the_reference(
    ops: ModuleType, dtype: torch.dtype, position_dtype: torch.dtype, size: int, count: int
) -> None:
    positions = random_positions(size, count, position_dtype)
    values = random_arena(count, dtype, seed=2)
    found, expected = random_arena(size, dtype), random_arena(size, dtype)
    ops.scatter_add_(found, positions, values)
    reference.scatter_add_(expected, positions, values)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("value_dtype", ARENA_DTYPES)
@pytest.mark.parametrize("dtype", ARENA_DTYPES)
def test_scatter_add_takes_values_of_every_dtype(ops: ModuleType, dtype: torch.dtype, value_dtype: torch.dtype) -> None:
    positions, values = random_positions(999, 333, torch.int64), random_arena(333, value_dtype, seed=2)
    found, expected = random_arena(999, dtype), random_arena(999, dtype)
    ops.scatter_add_(found, positions, values)
    reference.scatter_add_(expected, positions, values)
    assert torch.equal(found, expected)


@pytest.mark.parametrize(("size", "count"), SIZES)
@pytest.mark.parametrize("position_dtype", POSITION_DTYPES)
@pytest.mark.parametrize("dtype", ARENA_DTYPES)
def test_scatter_copy_equals_the_reference(
    ops: ModuleType, dtype: torch.dtype, position_dtype: torch.dtype, size: int, count: int
) -> None:
    positions, values = random_positions(size, count, position_dtype), random_arena(count, dtype, seed=2)
    found, expected = random_arena(size, dtype), random_arena(size, dtype)
    ops.scatter_copy_(found, positions, values)
    reference.scatter_copy_(expected, positions, values)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("dtype", ARENA_DTYPES)
def test_entries_that_are_not_named_keep_their_bits(ops: ModuleType, dtype: torch.dtype) -> None:
    positions = random_positions(500, 50, torch.int64)
    arena, before = random_arena(500, dtype), random_arena(500, dtype)
    ops.scatter_add_(arena, positions, torch.ones(50, dtype=dtype))
    untouched = torch.ones(500, dtype=torch.bool)
    untouched[positions] = False
    assert torch.equal(arena[untouched], before[untouched])
    assert not torch.equal(arena, before)


@pytest.mark.parametrize("dtype", ARENA_DTYPES)
def test_putting_gathered_values_back_restores_every_bit(ops: ModuleType, dtype: torch.dtype) -> None:
    positions = random_positions(5_000, 1_000, torch.int64)
    arena, before = random_arena(5_000, dtype), random_arena(5_000, dtype)
    arena[positions[0]] = before[positions[0]] = -0.0
    saved = ops.gather(arena, positions)
    ops.scatter_add_(arena, positions, torch.full((1_000,), 1e-3))
    ops.scatter_copy_(arena, positions, saved)
    assert torch.equal(arena.view(torch.uint8), before.view(torch.uint8))


def test_a_gathered_tensor_is_a_copy(ops: ModuleType) -> None:
    arena = torch.zeros(4)
    saved = ops.gather(arena, torch.tensor([1, 2]))
    arena.fill_(9.0)
    assert saved.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("module", [kernels, torch_ops, reference], ids=["door", "torch", "reference"])
def test_the_sum_is_rounded_once_and_not_the_value_before_it(module: ModuleType) -> None:
    """1 + (2^-8 + 2^-20) lies just above the middle of two bfloat16 numbers; the value alone rounds to the middle."""
    arena = torch.tensor([1.0], dtype=torch.bfloat16)
    value = torch.tensor([2.0**-8 + 2.0**-20])
    assert arena + value.to(torch.bfloat16) == 1.0
    module.scatter_add_(arena, torch.tensor([0]), value)
    assert arena.item() == 1.0 + 2.0**-7


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_sum_is_the_exact_sum_rounded(ops: ModuleType, dtype: torch.dtype) -> None:
    """With exponents this close the float32 sum is exact, so one rounding of the float64 sum says the same."""
    arena = (random_arena(10_000, torch.float32).abs() + 0.5).to(dtype)
    values = ((random_arena(10_000, torch.float32, seed=2).abs() + 0.5) * 0.01).to(dtype)
    exact = arena.double() + values.double()
    assert torch.equal(exact.float().double(), exact)
    ops.scatter_add_(arena, torch.arange(10_000), values)
    assert torch.equal(arena, exact.to(dtype))


@pytest.mark.parametrize("stray", [-1, -(1 << 31), 5_000, 5_001, (1 << 31) - 1])
@pytest.mark.parametrize("position_dtype", POSITION_DTYPES)
@pytest.mark.parametrize("dtype", ARENA_DTYPES)
def test_a_position_outside_the_arena_is_left_out_and_told(
    ops: ModuleType, dtype: torch.dtype, position_dtype: torch.dtype, stray: int
) -> None:
    arena, positions = random_arena(5_000, dtype), random_positions(5_000, 2_000, position_dtype)
    values, expected = random_arena(2_000, torch.float32, seed=2), arena.clone()
    kept = torch.arange(2_000) != 700
    torch_ops.scatter_add_(expected, positions[kept], values[kept])
    positions[700] = stray
    with pytest.raises(IndexError):
        ops.gather(arena, positions)
    with pytest.raises(IndexError):
        ops.scatter_add_(arena, positions, values)
    assert torch.equal(arena, expected)
    with pytest.raises(IndexError):
        ops.scatter_copy_(arena, positions, torch.zeros(2_000, dtype=dtype))
    assert arena[positions[kept].long()].count_nonzero() == 0
    assert arena.count_nonzero() == expected.count_nonzero() - expected[positions[kept].long()].count_nonzero()
