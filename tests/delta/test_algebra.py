"""Sums, merges and cuts of deltas: their algebra, and PEFT's definitions of the same methods on dense tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sparsehub.delta import Delta, ParameterDelta
from sparsehub.delta.algebra import (
    as_additions,
    dare,
    difference,
    drop,
    prune,
    scaled,
    ties,
    trim,
    weighted_sum,
    with_value_dtype,
)
from sparsehub.errors import DeltaError, UsageError

SHAPES = {"a.weight": (4, 5), "b.weight": (30,), "c.bias": (3,)}
# Exact in float32 whatever the order of a sum, so that equal means equal.
number = st.integers(-64, 64).filter(bool).map(lambda n: n / 16)
Table = dict[str, dict[int, float]]


def _parts(draw: Any, minimum: int = 0) -> Table:
    names = draw(st.lists(st.sampled_from(sorted(SHAPES)), unique=True, min_size=minimum))
    return {
        name: draw(st.dictionaries(st.integers(0, math.prod(SHAPES[name]) - 1), number, min_size=1)) for name in names
    }


tables = st.composite(_parts)
weight = st.sampled_from([-2.0, -0.5, 0.25, 1.0, 3.0])


def delta(table: Table, value_dtype: str = "float32") -> Delta:
    parts = {}
    for name, entries in table.items():
        places = sorted(entries)
        parts[name] = ParameterDelta(SHAPES[name], torch.tensor(places), torch.tensor([entries[p] for p in places]))
    return Delta(parts, "add", value_dtype)


def entries(found: Delta) -> Table:
    for part in found.parameters.values():
        assert len(part.indices) and bool((part.indices[1:] > part.indices[:-1]).all()) and bool(part.values.all())
    return {
        name: dict(zip(part.indices.tolist(), part.values.tolist(), strict=True))
        for name, part in found.parameters.items()
    }


def dense(found: Delta, name: str) -> Tensor:
    flat = torch.zeros(math.prod(SHAPES[name]))
    if name in found.parameters:
        flat[found.parameters[name].indices] = found.parameters[name].values.float()
    return flat


def same(first: Delta, second: Delta) -> None:
    assert entries(first) == entries(second)


@given(tables(), weight)
def test_one_is_neutral_and_zero_is_nothing(table: Table, w: float) -> None:
    same(scaled(delta(table), 1.0), delta(table))
    assert scaled(delta(table), 0.0).parameters == {}
    same(weighted_sum([delta(table), Delta({})], [w, 1.0]), scaled(delta(table), w))


@given(tables())
def test_every_delta_has_its_inverse(table: Table) -> None:
    assert weighted_sum([delta(table), scaled(delta(table), -1.0)], [1.0, 1.0]).parameters == {}
    assert difference(delta(table), delta(table)).parameters == {}


@given(tables(), tables(), tables(), weight, weight)
def test_sums_commute_and_associate(a: Table, b: Table, c: Table, v: float, w: float) -> None:
    same(weighted_sum([delta(a), delta(b)], [v, w]), weighted_sum([delta(b), delta(a)], [w, v]))
    ab = weighted_sum([delta(a), delta(b)], [1.0, 1.0])
    bc = weighted_sum([delta(b), delta(c)], [1.0, 1.0])
    same(weighted_sum([ab, delta(c)], [1.0, 1.0]), weighted_sum([delta(a), bc], [1.0, 1.0]))


@given(tables(), tables())
def test_the_way_from_one_task_to_another_leads_there(a: Table, b: Table) -> None:
    way = difference(delta(a), delta(b))
    same(weighted_sum([delta(a), way], [1.0, 1.0]), delta(b))
    same(difference(delta(b), delta(a)), scaled(way, -1.0))


@given(tables(), st.integers(0, 60), st.integers(0, 60))
def test_pruning_keeps_the_largest_and_pruning_again_changes_nothing(table: Table, budget: int, other: int) -> None:
    whole = [(-abs(v), name, place) for name, row in table.items() for place, v in row.items()]
    kept = {(name, place) for _, name, place in sorted(whole)[:budget]}
    found = prune(delta(table), budget)
    assert {(name, place) for name, row in entries(found).items() for place in row} == kept
    assert found.nnz == min(budget, len(whole))
    same(prune(found, budget), found)
    same(prune(prune(delta(table), budget), other), prune(delta(table), min(budget, other)))


@given(tables(), st.sampled_from([0.0, 0.3, 0.5, 1.0]))
def test_trimming_is_idempotent_at_its_ends_and_shrinks_between(table: Table, density: float) -> None:
    found = trim(delta(table), density)
    for name, row in table.items():
        assert len(entries(found).get(name, {})) == int(density * len(row))
    same(trim(delta(table), 1.0), delta(table))


@given(tables(), st.integers(0, 5))
def test_dropping_nothing_and_everything(table: Table, seed: int) -> None:
    same(drop(delta(table), 1.0, seed=seed), delta(table))
    assert drop(delta(table), 0.0, seed=seed).parameters == {}
    same(drop(delta(table), 0.5, seed=seed), drop(delta(table), 0.5, seed=seed))
    for name, row in entries(drop(delta(table), 0.5, seed=seed)).items():
        assert all(value == 2 * table[name][place] for place, value in row.items())


def test_dropping_keeps_the_mean_and_the_share() -> None:
    big = Delta({"w": ParameterDelta((100_000,), torch.arange(100_000), torch.ones(100_000))}, "add", "float32")
    found = drop(big, 0.2, seed=3).parameters["w"]
    assert abs(len(found.indices) / 100_000 - 0.2) < 0.01
    assert abs(float(found.values.sum()) / 100_000 - 1) < 0.05
    assert not torch.equal(found.indices, drop(big, 0.2, seed=4).parameters["w"].indices)


several = st.lists(tables(1), min_size=2, max_size=4)
Merge = Callable[[list[Tensor], Tensor], Tensor]


def against_dense(merged: Delta, deltas: Sequence[Delta], weights: Sequence[float], reference: Merge) -> None:
    for name in SHAPES:
        wanted = reference([dense(d, name) for d in deltas], torch.tensor(weights))
        torch.testing.assert_close(dense(merged, name), wanted, rtol=1e-6, atol=1e-6, msg=name)


@given(several, st.data())
def test_task_arithmetic_is_pefts(parts: list[Table], data: st.DataObject) -> None:
    from peft.utils.merge_utils import task_arithmetic

    deltas, weights = [delta(table) for table in parts], [data.draw(weight) for _ in parts]
    against_dense(weighted_sum(deltas, weights), deltas, weights, task_arithmetic)


def everywhere(seed: int) -> Delta:
    """A change of every entry, none as large as another: a dense task vector."""
    generator = torch.Generator().manual_seed(seed)
    parts = {}
    for name, shape in SHAPES.items():
        n = math.prod(shape)
        signs = torch.randint(2, (n,), generator=generator) * 2 - 1
        parts[name] = ParameterDelta(shape, torch.arange(n), (torch.randperm(n, generator=generator) + 1) / 16 * signs)
    return Delta(parts, "add", "float32")


@pytest.mark.parametrize("density", [0.2, 0.5, 0.99, 1.0])
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_ties_on_dense_deltas_is_pefts(density: float, count: int) -> None:
    from peft.utils.merge_utils import ties as reference

    deltas, weights = [everywhere(seed) for seed in range(count)], [1.0, 0.5, 2.0, -1.0, 0.25][:count]
    merged = ties(deltas, weights, density)
    with torch.no_grad():
        against_dense(merged, deltas, weights, lambda tensors, w: reference(tensors, w, density))


@given(several, st.data())
def test_ties_on_sparse_deltas_is_pefts_where_nothing_is_trimmed(parts: list[Table], data: st.DataObject) -> None:
    from peft.utils.merge_utils import calculate_majority_sign_mask, disjoint_merge

    deltas, weights = [delta(table) for table in parts], [data.draw(weight) for _ in parts]

    def reference(tensors: list[Tensor], w: Tensor) -> Tensor:
        stacked = torch.stack(tensors)
        return disjoint_merge(stacked * w[:, None], calculate_majority_sign_mask(stacked))

    against_dense(ties(deltas, weights, 1.0), deltas, weights, reference)


@pytest.mark.parametrize("elect", [False, True])
@pytest.mark.parametrize("density", [0.3, 0.8])
def test_dare_is_pefts_given_the_same_draws(density: float, elect: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from peft.utils import merge_utils

    deltas, weights = [everywhere(seed) for seed in range(3)], [1.0, 0.5, -2.0]
    merged = dare(deltas, weights, density, seed=9, elect=elect)
    reference = merge_utils.dare_ties if elect else merge_utils.dare_linear
    for name in SHAPES:
        masks = iter([(dense(drop(d, density, seed=9 + i), name) != 0).float() for i, d in enumerate(deltas)])
        monkeypatch.setattr(merge_utils.torch, "bernoulli", lambda _, masks=masks: next(masks))
        wanted = reference([dense(d, name) for d in deltas], torch.tensor(weights), density)
        monkeypatch.undo()
        torch.testing.assert_close(dense(merged, name), wanted, rtol=1e-5, atol=1e-6, msg=name)


@given(several)
def test_the_order_of_deltas_does_not_matter_to_ties(parts: list[Table]) -> None:
    deltas = [delta(table) for table in parts]
    weights = [1.0] * len(deltas)
    forth, back = ties(deltas, weights, 1.0), ties(deltas[::-1], weights, 1.0)
    for name in SHAPES:
        torch.testing.assert_close(dense(forth, name), dense(back, name))


@pytest.mark.parametrize("value_dtype", ["float32", "float16", "bfloat16", "int8"])
def test_another_dtype_rounds_the_values_and_leaves_out_what_becomes_zero(value_dtype: str) -> None:
    part = ParameterDelta((9,), torch.tensor([0, 3, 7]), torch.tensor([1.0 / 3, 1e-30, -2.0]))
    found = with_value_dtype(Delta({"w": part}, "add", "float32"), value_dtype).parameters["w"]
    assert found.indices.tolist() == ([0, 7] if value_dtype == "float16" else [0, 3, 7])
    stored = torch.float32 if value_dtype == "int8" else getattr(torch, value_dtype)
    assert found.values.dtype == stored and found.values[0] == torch.tensor(1.0 / 3).to(stored)


def test_a_value_that_a_dtype_cannot_hold_is_refused() -> None:
    part = ParameterDelta((9,), torch.tensor([0]), torch.tensor([1e6]))
    with pytest.raises(DeltaError, match="float16 cannot hold"):
        with_value_dtype(Delta({"w": part}, "add", "float32"), "float16")
    with pytest.raises(UsageError, match="unknown value dtype 'float8', did you mean"):
        with_value_dtype(Delta({"w": part}, "add", "float32"), "float8")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_set_values_become_additions_that_give_the_same_weights(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    base = torch.randn(200, generator=generator).to(dtype)
    tuned = (base.float() + torch.randn(200, generator=generator) * 0.01).to(dtype)
    changed = torch.nonzero(tuned != base).flatten()
    name = str(dtype).removeprefix("torch.")
    exact = Delta({"w": ParameterDelta((200,), changed, tuned[changed])}, "set", name)
    additions = as_additions(exact, lambda _: base)
    part = additions.parameters["w"]
    summed = (base[part.indices].float() + part.values).to(dtype)
    if dtype == torch.float32:
        torch.testing.assert_close(summed, tuned[part.indices], rtol=1e-6, atol=0)
    else:
        assert torch.equal(summed, tuned[part.indices])
    same(as_additions(additions, lambda _: base), additions)


def test_what_does_not_fit_together_is_refused() -> None:
    one = delta({"c.bias": {0: 1.0}})
    other = Delta({"c.bias": ParameterDelta((7,), torch.tensor([0]), torch.tensor([1.0]))}, "add", "float32")
    with pytest.raises(DeltaError, match=r"'c\.bias' has other shapes"):
        weighted_sum([one, other], [1.0, 1.0])
    with pytest.raises(UsageError, match="one weight for each delta"):
        weighted_sum([one], [1.0, 2.0])
    with pytest.raises(UsageError, match="density is a share"):
        ties([one], [1.0], 1.5)
    with pytest.raises(UsageError, match="a budget is a number"):
        prune(one, -1)
    exact = Delta(one.parameters, "set", "float32")
    for operation in (lambda: scaled(exact, 1.0), lambda: prune(exact, 1), lambda: with_value_dtype(exact, "float16")):
        with pytest.raises(UsageError, match="`set` values say what a weight becomes"):
            operation()


def test_a_sum_of_one_dtype_stays_in_it_and_a_mixture_is_float32() -> None:
    half, full = delta({"c.bias": {0: 1.0}}, "float16"), delta({"c.bias": {0: 1.0}}, "float32")
    assert weighted_sum([half, half], [1.0, 1.0]).value_dtype == "float16"
    assert weighted_sum([half, full], [1.0, 1.0]).value_dtype == "float32"
