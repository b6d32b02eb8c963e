"""Products in 8 bits, with every instruction set of this machine and in torch, against plain arithmetic."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparsehub.kernels import (
    Int8Map,
    Int8Rows,
    changes_of,
    int8_linear,
    int8_product,
    native,
    native_module,
    pack_int8,
    quantise_rows,
    segments_of,
)
from tests.kernels.test_sparse import every_kind_of_change
from tests.support.int8_ways import INT8_WAYS, in_use

STEPS = {"plain": (127,), "avx2": (63,), "avx512": (63, 127), "torch": (127,)}  # with AVX-512 it depends on VNNI
EVERY = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(params=INT8_WAYS)
def int8_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """What multiplies, one after the other."""
    yield from in_use(request.param, monkeypatch)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape) + seed))


def exact_rows(x: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """The rounded input as integers, and what a level is worth."""
    sizes = x.abs().amax(-1).clamp_min(1e-30)
    return (x * (steps / sizes)[:, None]).round().long(), sizes / steps


def levels_of(rows: Int8Rows, width: int) -> Tensor:
    assert bool((rows.levels[:, width:] == rows.steps + 1).all()), "nothing stands for zero where there is no input"
    return rows.levels[:, :width].long() - (rows.steps + 1)


@pytest.mark.parametrize(("rows", "width"), [(1, 1), (3, 7), (9, 16), (17, 384), (200, 401)])
def test_rows_are_rounded_by_their_largest_value(int8_way: str, rows: int, width: int) -> None:
    x = random(rows, width) * torch.logspace(-3, 3, rows)[:, None]
    x[rows // 2] = 0
    found = quantise_rows(x)
    assert found.steps in STEPS[int8_way]
    levels, units = exact_rows(x, found.steps)
    torch.testing.assert_close(found.units, units, rtol=1e-6, atol=0)
    # A product that lies between two levels, up to its last bit, may go to either.
    between = ((x.double() / units[:, None].double()) % 1 - 0.5).abs() < 1e-4
    assert torch.equal(levels_of(found, width)[~between], levels[~between])
    assert int((levels_of(found, width) - levels).abs().max()) <= 1
    assert not levels_of(found, width)[rows // 2].any()


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [0, 15, 16, 20])
def test_a_row_with_a_wrong_value_has_no_finite_one(int8_way: str, wrong: float, place: int) -> None:
    """Or it would be rounded to some number in silence."""
    x = torch.ones(3, 21)
    x[1, place] = wrong
    rows, weight = quantise_rows(x), pack_int8(torch.zeros(5, 21))
    assert rows.units[1].isnan()
    for bias in (None, torch.ones(5)):
        y = int8_product(rows, weight, bias)
        assert y[1].isnan().all() and torch.equal(y[[0, 2]], torch.full((2, 5), 0.0 if bias is None else 1.0))


@pytest.mark.parametrize("extreme", [False, True])
@given(st.integers(1, 70), st.integers(1, 140), st.integers(1, 140), st.integers(0, 9))
@EVERY
def test_sums_are_exact(int8_way: str, extreme: bool, rows: int, inside: int, out: int, seed: int) -> None:
    """Of whole numbers below 2^24, float32 is exact as well. extreme: all of them as large as they can be."""
    x, w = random(rows, inside, seed=seed), random(out, inside, seed=seed)
    if extreme:
        x, w = x.sign(), w.sign().abs() if seed % 2 else w.sign()
    given_rows, weight = quantise_rows(x), pack_int8(w)
    levels = (w / weight.scales[:, None]).round().long()
    right = levels_of(given_rows, inside) @ levels.t()
    assert torch.equal(weight.sums.long(), levels.sum(1))
    plain = Int8Rows(given_rows.levels, torch.ones(rows), given_rows.steps)
    weight.scales.fill_(1)
    assert torch.equal(int8_product(plain, weight, None), right.float())


def test_sums_of_many_inputs_do_not_overflow(int8_way: str) -> None:
    x, w = torch.ones(7, 1 << 16), torch.ones(3, 1 << 16)
    y = int8_product(quantise_rows(x), pack_int8(w), None)
    torch.testing.assert_close(y, torch.full((7, 3), float(1 << 16)), rtol=1e-6, atol=0)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("inside", "out"), [(16, 4), (65, 100), (384, 192), (1536, 70)])
def test_it_is_the_product_of_what_was_rounded(int8_way: str, inside: int, out: int, biased: bool) -> None:
    w, bias = random(out, inside), random(out) if biased else None
    for rows in (1, 2, 6, 23, 64, 203):
        x = random(rows, inside) * torch.logspace(-3, 3, rows)[:, None]
        given_rows, weight = quantise_rows(x), pack_int8(w)
        own = (w / weight.scales[:, None]).round().double() * weight.scales[:, None]
        right = (levels_of(given_rows, inside) * given_rows.units.double()[:, None]) @ own.t()
        y = int8_product(given_rows, weight, bias)
        sizes = right.abs().amax(-1, keepdim=True)
        torch.testing.assert_close(y / sizes, (right + (0 if bias is None else bias)) / sizes, check_dtype=False)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_a_row_is_the_same_whatever_is_beside_it(int8_way: str, threads: int) -> None:
    x, weight, bias = random(230, 92), pack_int8(random(150, 92)), random(150)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        every = int8_product(quantise_rows(x), weight, bias)
        for first, last in ((0, 1), (3, 9), (100, 107), (5, 200)):
            assert torch.equal(int8_product(quantise_rows(x[first:last].clone()), weight, bias), every[first:last])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("biased", [False, True])
def test_what_tasks_change_is_added(int8_way: str, biased: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """For maps that share an input, and tasks of every kind of change, a task without one among them."""
    if int8_way == "torch":
        monkeypatch.setattr(native, "takes_matrix", lambda _: False)
    inside, sizes = 40, (24, 130)
    bounds = [(slot, 3 * slot, 3 * slot + 3) for slot in range(9)]
    segments, x = segments_of(bounds, 2), random(27, 2, inside)
    changes = [[every_kind_of_change(inside, out, slot) for slot in range(9)] for out in sizes]
    rows = quantise_rows(x.view(-1, inside))
    weights, biases = [random(out, inside) for out in sizes], [random(out) if biased else None for out in sizes]
    packed = [pack_int8(weight) for weight in weights]
    maps = [Int8Map(*each) for each in zip(packed, biases, map(changes_of, changes), strict=True)]
    for y, m, parts in zip(int8_linear(x, rows, maps, segments), maps, changes, strict=True):
        product = int8_product(rows, m.weight, m.bias).view(y.shape)
        for slot, first, last in bounds:
            right = product[first:last].double()
            if (part := parts[slot]) is not None:
                right = right + (
                    x[first:last].double() @ part.csr.to_dense().double().t() if part.values is not None else 0
                )
                right = right + (part.bias.double() if part.bias is not None else 0)
            torch.testing.assert_close(y[first:last], right.float(), rtol=1e-5, atol=1e-5)


def test_more_levels_than_the_instructions_hold_are_refused() -> None:
    """Or two products in 16 bits would be cut off in silence."""
    if "avx2" not in native_module.machine().available:
        pytest.skip("needs the native kernels and AVX2")
    before, rows = native_module.machine(), Int8Rows(torch.zeros(1, 4, dtype=torch.uint8), torch.ones(1), 127)
    native_module.choose("avx2")
    try:
        with pytest.raises(TypeError, match="no native kernel"):
            int8_product(rows, pack_int8(torch.ones(1, 4)), None)
    finally:
        native_module.choose(before.instruction_set, before.second_cache)
