"""Predictions from measured points, and what is learned from batches."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsehub.engine.cost_model import (
    GROUPED,
    MIXED,
    PLAIN,
    SWAP,
    TRUNK,
    CalibrationPoints,
    CostModel,
    RowGroup,
    TrunkSizes,
    padded_tokens,
    work_of,
)

FORWARD = [(10, 0.010), (100, 0.040), (1000, 0.300)]
SWITCH = [(1000, 0.0011), (10_000, 0.002)]


def sparse_seconds(tokens: int, work: float) -> float:
    return 0.001 + 2e-6 * tokens + 1e-9 * work


SPARSE = [(n, w, sparse_seconds(n, w)) for n, w in [(10, 1e4), (200, 1e5), (200, 4e6)]]


@pytest.fixture
def costs() -> CostModel:
    return CostModel(CalibrationPoints(FORWARD, SWITCH, SPARSE))


def group(rows: int, longest: int, entries: int = 5000) -> RowGroup:
    return RowGroup(rows * longest, entries, rows, longest)


def test_a_forward_is_read_off_the_curve(costs: CostModel) -> None:
    assert costs.forward(100) == pytest.approx(0.040)
    assert costs.forward(55) == pytest.approx(0.025)
    assert costs.forward(1) == pytest.approx(0.010)
    assert costs.forward(1900) == pytest.approx(0.300 + 900 * 0.260 / 900)


def test_switches_and_sparse_parts_are_the_lines_through_their_points(costs: CostModel) -> None:
    assert costs.switch(5500) == pytest.approx(0.00155)
    assert costs.switch(0) == 0.0
    groups = [group(4, 25), group(4, 25)]
    assert costs.sparse(groups) == pytest.approx(sparse_seconds(200, work_of(groups)), rel=1e-6)


def test_padding_counts(costs: CostModel) -> None:
    groups = [group(2, 10, 100), group(3, 40, 7)]
    assert padded_tokens(groups) == 5 * 40
    assert work_of(groups) == 100 * 5 + 7 * 8  # 80 tokens are five steps of 16, 120 are eight
    assert costs.predict(GROUPED, groups) < costs.forward(20) + costs.forward(120) + 1


def test_a_task_that_is_there_needs_no_switch(costs: CostModel) -> None:
    alone = [group(4, 25)]
    assert costs.predict(SWAP, alone, there=True) == pytest.approx(costs.forward(100))
    assert costs.predict(SWAP, alone) == pytest.approx(costs.forward(100) + costs.switch(5000))


def test_many_small_groups_are_cheaper_mixed_and_one_is_not(costs: CostModel) -> None:
    many = [group(1, 16) for _ in range(16)]
    assert costs.predict(MIXED, many) < costs.predict(GROUPED, many)
    assert costs.predict(SWAP, [group(16, 16)], there=True) < costs.predict(MIXED, [group(16, 16)])


def test_what_comes_on_top_is_learned_by_way_of_running(costs: CostModel) -> None:
    many = [group(1, 16) for _ in range(16)]
    plain = costs.forward(256)
    for _ in range(60):
        costs.learn(MIXED, many, plain + 3 * costs.sparse(many))
    assert costs.predict(MIXED, many) == pytest.approx(plain + 3 * costs.sparse(many), rel=0.01)
    assert costs.ratios[PLAIN] == costs.ratios[SWAP] == costs.ratios[GROUPED] == 1.0


def test_a_slow_forward_is_slow_in_every_way(costs: CostModel) -> None:
    """Else the way that was not tried lately would look better, though it has the same forward in it."""
    one = [group(16, 16)]
    for _ in range(60):
        costs.learn(SWAP, one, 2 * costs.forward(256), there=True)
    assert costs.predict(SWAP, one, there=True) == pytest.approx(2 * costs.forward(256), rel=0.01)
    assert costs.predict(MIXED, one) > costs.predict(SWAP, one, there=True)


def test_one_absurd_measurement_does_not_decide(costs: CostModel) -> None:
    costs.learn(SWAP, [group(1, 16)], 1000.0, there=True)
    assert costs.ratios[PLAIN] <= 1.3
    costs.learn(MIXED, [group(1, 16)], 0.0)
    assert costs.ratios[MIXED] >= 0.9


def test_without_points_of_the_sparse_part_the_rest_is_predicted() -> None:
    costs = CostModel(CalibrationPoints(FORWARD, SWITCH, []))
    assert costs.predict(SWAP, [group(4, 25)]) > 0


@given(
    st.lists(st.floats(0, 1), min_size=3, max_size=3),
    st.lists(st.tuples(st.integers(1, 64), st.integers(1, 128), st.integers(0, 10**6)), min_size=1, max_size=8),
)
def test_no_prediction_is_negative(noise: list[float], sizes: list[tuple[int, int, int]]) -> None:
    points = CalibrationPoints(FORWARD, [(1000, noise[0]), (9000, noise[1])], [(n, w, noise[2]) for n, w, _ in SPARSE])
    costs, groups = CostModel(points), [group(rows, longest, entries) for rows, longest, entries in sizes]
    for mode in (SWAP, MIXED, GROUPED):
        assert costs.predict(mode, groups) >= 0


def test_a_trunk_costs_its_layers_and_its_branches_and_learns() -> None:
    points = CalibrationPoints([(1, 0.1), (101, 1.1)], [(1, 1.0)], [(1, 1.0, 0.01), (100, 100.0, 0.5), (100, 9.0, 0.4)])
    model = CostModel(points)
    branch = RowGroup(tokens=40, entries=100, rows=4, longest=10)
    sizes = TrunkSizes([(5 / 6, 11), (1 / 6, 51)], [branch])
    heads_alone = TrunkSizes([(1.0, 11)], [])
    shared = 5 / 6 * model.forward(11) + 1 / 6 * model.forward(51)
    assert model.predict(TRUNK, [], trunk=sizes) == pytest.approx(shared + model.sparse([branch]))
    assert model.predict(TRUNK, [], trunk=heads_alone) == pytest.approx(model.forward(11))
    for _ in range(200):
        model.learn(TRUNK, [], shared + 2 * model.sparse([branch]), trunk=sizes)
    assert model.predict(TRUNK, [], trunk=sizes) == pytest.approx(shared + 2 * model.sparse([branch]), rel=1e-3)
    assert model.ratios[PLAIN] == 1.0
