from __future__ import annotations

import math
import weakref
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparsehub.errors import DataError
from sparsehub.selection.threshold import top_k

pytestmark = pytest.mark.soak
LARGEST, SMALLEST = torch.finfo(torch.float32).max, torch.finfo(torch.float32).smallest_normal
SPECIAL = [-1.0, -0.0, 0.0, 1.4e-45, SMALLEST, 1.0, 1.0 + 2**-23, 2.0, LARGEST, math.inf]
score = st.one_of(st.sampled_from(SPECIAL), st.floats(0, width=32, allow_nan=False))
tables = st.lists(st.lists(score, max_size=12), min_size=1, max_size=6)


def plain_top_k(scores: dict[str, Tensor], k: int) -> dict[str, list[int]]:
    """All scores in one list, sorted."""
    entries = [(name, i, v) for name, values in scores.items() for i, v in enumerate(values.tolist()) if v >= 0]
    order = sorted(range(len(entries)), key=lambda place: (-entries[place][2], place))
    chosen: dict[str, list[int]] = {}
    for place in sorted(order[:k]):
        chosen.setdefault(entries[place][0], []).append(entries[place][1])
    return chosen


def as_lists(chosen: dict[str, Tensor]) -> dict[str, list[int]]:
    assert all(positions.dtype == torch.int64 for positions in chosen.values())
    return {name: positions.tolist() for name, positions in chosen.items()}


def named(tensors: list[Tensor]) -> dict[str, Tensor]:
    return {f"p{i}": tensor for i, tensor in enumerate(tensors)}


@given(tables, st.integers(0, 80))
def test_it_is_the_plain_sort_of_all_scores(values: list[list[float]], k: int) -> None:
    scores = named([torch.tensor(row, dtype=torch.float32) for row in values])
    assert as_lists(top_k(list(scores), scores.__getitem__, k)) == plain_top_k(scores, k)


@given(st.integers(0, 2**32 - 1), st.integers(0, 3000))
@settings(max_examples=20, deadline=None)
def test_it_is_the_plain_sort_of_thousands_of_scores_with_ties(seed: int, k: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, 40, (1500,), generator=generator).float() / 8
    fine = torch.rand(900, generator=generator).to(torch.bfloat16).float()
    squares = torch.randn(300, generator=generator).square()
    scores = named([coarse, fine, squares])
    assert as_lists(top_k(list(scores), scores.__getitem__, k)) == plain_top_k(scores, k)


@pytest.mark.parametrize("chunk", [1, 3, 7])
def test_where_scores_are_cut_into_chunks_does_not_matter(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    scores = named([torch.tensor([1.0, 5, 5, -1, 0, 5, 2]), torch.tensor([5.0, 0, 9, 5, 1, 5, 5, 5])])
    whole = [as_lists(top_k(list(scores), scores.__getitem__, k)) for k in range(16)]
    monkeypatch.setattr("sparsehub.selection.threshold._CHUNK", chunk)
    assert [as_lists(top_k(list(scores), scores.__getitem__, k)) for k in range(16)] == whole


def test_every_distance_of_one_bit_counts() -> None:
    bits = torch.arange(0, 0x7F800000, 524_287, dtype=torch.int32)
    scores = {"p": bits[torch.randperm(len(bits), generator=torch.Generator().manual_seed(0))].view(torch.float32)}
    for k in (1, 2, 1000, len(bits) - 1):
        assert as_lists(top_k(["p"], scores.__getitem__, k)) == plain_top_k(scores, k)


def test_ties_go_to_the_earlier_name_and_then_to_the_lower_position() -> None:
    scores = {"z": torch.tensor([0.0, 5, 5]), "a": torch.tensor([5.0, 5, 9])}
    assert as_lists(top_k(["z", "a"], scores.__getitem__, 4)) == {"z": [1, 2], "a": [0, 2]}
    assert as_lists(top_k(["a", "z"], scores.__getitem__, 4)) == {"a": [0, 1, 2], "z": [1]}


def test_all_zeros_are_ties_too_and_minus_zero_is_zero() -> None:
    scores = {"a": torch.tensor([0.0, -0.0]), "b": torch.tensor([-0.0, 0.0])}
    assert as_lists(top_k(["a", "b"], scores.__getitem__, 3)) == {"a": [0, 1], "b": [0]}


@pytest.mark.parametrize("k", [0, -1])
def test_a_budget_of_nothing_looks_at_nothing(k: int) -> None:
    assert top_k(["p"], lambda name: pytest.fail("asked for scores"), k) == {}


@pytest.mark.parametrize("k", [4, 5, 10**12])
def test_what_may_not_be_chosen_is_left_out_however_large_the_budget(k: int) -> None:
    scores = {"a": torch.tensor([-1.0, 0.0, 3.0]), "none": torch.tensor([-1.0, -1.0]), "b": torch.tensor([1.0, 2.0])}
    assert as_lists(top_k(list(scores), scores.__getitem__, k)) == {"a": [1, 2], "b": [0, 1]}


@pytest.mark.parametrize("place", [0, 7])
def test_a_score_that_is_no_number_is_refused_by_name(place: int) -> None:
    scores = {"good": torch.ones(8), "bad": torch.ones(8)}
    scores["bad"][place] = math.nan
    with pytest.raises(DataError, match="the scores of 'bad' are not numbers"):
        top_k(["good", "bad"], scores.__getitem__, 1)


def test_no_two_tensors_of_scores_live_at_the_same_time() -> None:
    names = [f"p{i}" for i in range(7)]
    alive: list[weakref.ref[Tensor]] = []
    most, calls = 0, Counter[str]()

    def score_of(name: str) -> Tensor:
        nonlocal most
        most = max(most, sum(reference() is not None for reference in alive))
        calls[name] += 1
        scores = torch.full((1000,), float(name[1:]))
        alive.append(weakref.ref(scores))
        return scores

    top_k(names, score_of, 2500)
    assert most <= 1  # the one before it, while the loop variable still holds it
    assert set(calls.values()) == {3}
