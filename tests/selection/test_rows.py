"""Row granularity and LIFT beside plain loops."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sparsehub.errors import DataError, UsageError
from sparsehub.selection import SelectionRequest, rule_named, select

AXES = {"a.weight": 0, "b.weight": 1}  # b lies as GPT-2's Conv1D does: inputs by outputs


def parameters() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(4)
    shapes = {"embedding": (9, 4), "a.weight": (5, 7), "a.bias": (5,), "b.weight": (3, 6)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


@pytest.mark.parametrize("budget", [11, 21, 22, 35, 1000])
def test_every_output_row_gets_the_same_number_of_its_best_inputs(budget: int) -> None:
    every = parameters()
    mask = select("magnitude", SelectionRequest(every, budget, "row", AXES))
    assert set(mask) == set(AXES)
    for name, axis in AXES.items():
        chosen = set(mask[name].tolist())
        rows, width = every[name].shape[axis], every[name].shape[1 - axis]
        for row in range(rows):
            places = [row * width + i if axis == 0 else i * rows + row for i in range(width)]
            places.sort(key=lambda place: -abs(float(every[name].flatten()[place])))
            assert chosen & set(places) == set(places[: budget // 11])
    assert all(bool((positions.diff() > 0).all()) for positions in mask.values())


def test_equal_scores_go_to_the_earlier_input() -> None:
    every = {"a.weight": torch.ones(3, 4), "b.weight": torch.ones(4, 2)}
    mask = select("magnitude", SelectionRequest(every, 10, "row", AXES))
    assert mask["a.weight"].tolist() == [0, 1, 4, 5, 8, 9] and mask["b.weight"].tolist() == [0, 1, 2, 3]


def test_less_than_an_entry_a_row_and_no_linear_layers_are_refused() -> None:
    with pytest.raises(UsageError, match="10 entries for 11 rows"):
        select("magnitude", SelectionRequest(parameters(), 10, "row", AXES))
    with pytest.raises(UsageError, match="no output rows in scope"):
        select("magnitude", SelectionRequest({"a.bias": torch.ones(4)}, 10, "row", AXES))
    with pytest.raises(DataError, match="not numbers"):
        select("magnitude", SelectionRequest({"a.weight": torch.full((2, 2), torch.nan)}, 10, "row", AXES))


@pytest.mark.parametrize("rank", [1, 2, 100])
def test_lift_scores_by_the_best_approximation_of_its_rank(rank: int) -> None:
    every = parameters()
    score_of = rule_named("lift").scores(SelectionRequest(every, 20, output_axes=AXES, options={"rank": rank}))
    assert bool((score_of("embedding") == -1).all()) and bool((score_of("a.bias") == -1).all())
    for name in AXES:
        weight = every[name].double()
        # reference: power iteration, one term after the other
        left, approximation = weight.clone(), torch.zeros_like(weight)
        for _ in range(min(rank, *weight.shape)):
            vector = torch.ones(left.shape[1], dtype=torch.float64)
            for _ in range(2000):
                vector = left.T @ (left @ vector)
                vector /= vector.norm()
            term = torch.outer(left @ vector, vector)
            approximation, left = approximation + term, left - term
        assert score_of(name).tolist() == pytest.approx(approximation.flatten().abs().tolist(), abs=1e-5)


def test_lift_spends_its_whole_budget_on_linear_layers_each_by_its_size() -> None:
    mask = select("lift", SelectionRequest(parameters(), 20, "tensor", AXES, options={"rank": 2}))
    assert {name: len(positions) for name, positions in mask.items()} == {"a.weight": 13, "b.weight": 7}


def test_lift_refuses_a_rank_of_zero_and_a_scope_without_linear_layers() -> None:
    for every, rank in ((parameters(), 0), ({"a.bias": torch.ones(3)}, 8)):
        with pytest.raises(UsageError, match="lift needs a rank"):
            select("lift", SelectionRequest(every, 20, "tensor", AXES, options={"rank": rank}))
