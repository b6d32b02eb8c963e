from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sparsehub.errors import UsageError
from sparsehub.selection import SelectionRequest, rule_named, rule_names, select
from sparsehub.selection.rule import STATISTICS, budget_of

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def parameters(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    shapes = {"a.weight": (6, 5), "a.bias": (6,), "norm.weight": (7,), "norm.bias": (7,), "b.weight": (4, 3, 2)}
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


def scores(method: str, request: SelectionRequest) -> dict[str, Tensor]:
    score_of = rule_named(method).scores(request)
    found = {name: score_of(name) for name in request.parameters}
    for name, score in found.items():
        assert (score.dtype, score.shape) == (torch.float32, (request.parameters[name].numel(),))
        assert torch.equal(score, score_of(name))  # scores are asked for again and again
    return found


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_magnitude_is_the_absolute_weight(dtype: torch.dtype) -> None:
    found = scores("magnitude", SelectionRequest(parameters(dtype), 10))
    for name, weight in parameters(dtype).items():
        assert found[name].tolist() == [abs(value) for value in weight.flatten().tolist()]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sam_is_the_squared_gradient(dtype: torch.dtype) -> None:
    gradients = {name: weight.flip(0) for name, weight in parameters(dtype).items()}
    found = scores("sam", SelectionRequest(parameters(dtype), 10, statistics={"gradient": gradients}))
    for name, gradient in gradients.items():
        assert found[name].tolist() == [
            torch.tensor(value).square().item() for value in gradient.float().flatten().tolist()
        ]


@pytest.mark.parametrize("method", [name for name in rule_names() if rule_named(name).needs])
def test_a_rule_without_its_statistics_says_what_it_needs(method: str) -> None:
    assert set(rule_named(method).needs) <= set(STATISTICS)
    with pytest.raises(UsageError, match=f"{method} needs the statistic '{rule_named(method).needs[0]}'"):
        select(method, SelectionRequest(parameters(), 10))


@pytest.mark.parametrize("method", ["random", "magnitude", "bitfit"])
def test_the_other_rules_look_at_no_rows(method: str) -> None:
    assert rule_named(method).needs == ()
    assert select(method, SelectionRequest(parameters(), 40))


def test_snip_weighs_a_gradient_by_its_weight() -> None:
    weights = {"w": torch.tensor([2.0, -3.0, 0.0, 0.5])}
    gradients = {"w": torch.tensor([-1.0, 0.5, 100.0, 2.0])}
    found = scores("snip", SelectionRequest(weights, 2, statistics={"gradient": gradients}))
    assert found["w"].tolist() == [2.0, 1.5, 0.0, 1.0]


def test_released_sam_ranks_by_the_absolute_sum() -> None:
    sums = {"w": torch.tensor([-2.0, 1.5, 0.0])}
    request = SelectionRequest({"w": torch.zeros(3)}, 1, statistics={"clipped_gradient": sums})
    assert scores("sam-released", request)["w"].tolist() == [2.0, 1.5, 0.0]
    assert rule_named("sam-released").defaults == {"granularity": "tensor", "calibration_batches": 600}


def test_squares_are_scores_as_they_are_and_child_tuning_stays_inside_the_layers() -> None:
    squares = {"layer.0.w": torch.tensor([[1.0], [4.0]]), "embedding": torch.tensor([9.0, 2.0])}
    candidates = {name: torch.zeros_like(square) for name, square in squares.items()}
    fisher = scores("fisher", SelectionRequest(candidates, 1, statistics={"row_squares": squares}))
    assert {name: score.tolist() for name, score in fisher.items()} == {
        "layer.0.w": [1.0, 4.0],
        "embedding": [9.0, 2.0],
    }
    request = SelectionRequest(candidates, 4, statistics={"batch_squares": squares})
    assert scores("child-tuning", request)["embedding"].tolist() == [-1.0, -1.0]
    assert list(select("child-tuning", request)) == ["layer.0.w"]
    outside = {"embedding": candidates["embedding"]}
    with pytest.raises(UsageError, match="no numbered layers"):
        select("child-tuning", SelectionRequest(outside, 1, statistics={"batch_squares": squares}))


def test_hessian_sam_divides_by_damped_curvature_and_survives_none() -> None:
    gradients = {"w": torch.tensor([1.0, 2.0, 3.0, 0.0]), "dead": torch.zeros(2)}
    curvature = {"w": torch.tensor([2.0, -4.0, 0.0, 2.0]), "dead": torch.zeros(2)}
    candidates = {name: torch.zeros_like(tensor) for name, tensor in gradients.items()}
    request = SelectionRequest(
        candidates, 1, statistics={"gradient": gradients, "hessian": curvature}, options={"damping": 0.5}
    )
    found = scores("sam-hessian", request)
    assert found["w"].tolist() == pytest.approx([1 / 3, 4 / 5, 9.0, 0.0])  # the mean of |h| is 2, half of it is 1
    assert found["dead"].tolist() == [0.0, 0.0]


def test_kinds_compete_across_layers_and_get_a_share_by_their_size() -> None:
    every = {
        "layer.0.query.weight": torch.tensor([1.0, 2.0, 3.0, 4.0]),
        "layer.1.query.weight": torch.tensor([9.0, 8.0, 7.0, 6.0]),
        "layer.0.norm.bias": torch.tensor([100.0, 100.0]),
        "layer.1.norm.bias": torch.tensor([100.0, 100.0]),
    }
    mask = select("magnitude", SelectionRequest(every, 6, "kind"))
    assert {name: positions.tolist() for name, positions in mask.items()} == {
        "layer.1.query.weight": [0, 1, 2, 3],
        "layer.0.norm.bias": [0, 1],
    }


def test_random_depends_on_the_seed_and_the_name_alone() -> None:
    every = parameters()
    alone = scores("random", SelectionRequest({"norm.bias": every["norm.bias"]}, 1, seed=5))["norm.bias"]
    among = scores("random", SelectionRequest(every, 50, seed=5))
    assert torch.equal(among["norm.bias"], alone)
    assert not torch.equal(scores("random", SelectionRequest(every, 1, seed=6))["norm.bias"], alone)
    assert not torch.equal(among["norm.bias"], among["norm.weight"])
    with torch.random.fork_rng():
        torch.manual_seed(99)
        assert torch.equal(scores("random", SelectionRequest(every, 1, seed=5))["norm.bias"], alone)


@pytest.mark.parametrize("seed", [0, 42, 2**32 - 1])
def test_random_is_uniform(seed: int) -> None:
    score = scores("random", SelectionRequest({"w": torch.zeros(40_000)}, 1, seed=seed))["w"]
    assert abs(score.mean() - 0.5) < 0.01
    assert abs(score.var() - 1 / 12) < 0.005
    assert score.min() >= 0 and score.max() < 1


def test_bitfit_chooses_every_bias_and_nothing_else_whatever_is_left_of_the_budget() -> None:
    for budget in (13, 14, 74):
        mask = select("bitfit", SelectionRequest(parameters(), budget))
        assert {name: positions.tolist() for name, positions in mask.items()} == {
            "a.bias": list(range(6)),
            "norm.bias": list(range(7)),
        }


def test_bitfit_refuses_a_budget_below_all_biases_and_names_the_density_that_works() -> None:
    every = parameters()
    with pytest.raises(UsageError, match="bitfit always chooses every bias; found: a budget of 12") as caught:
        select("bitfit", SelectionRequest(every, 12))
    assert budget_of(every, float(str(caught.value).split("--density to ")[1].split()[0])) >= 13


def test_bitfit_refuses_shares_by_tensor_and_a_backbone_without_biases() -> None:
    with pytest.raises(UsageError, match="granularity tensor"):
        select("bitfit", SelectionRequest(parameters(), 74, "tensor"))
    with pytest.raises(UsageError, match="finds no biases"):
        select("bitfit", SelectionRequest({"w": torch.ones(4), "rebias": torch.ones(4)}, 8))


@pytest.mark.parametrize("method", ["magnitude", "random"])
@pytest.mark.parametrize("granularity", ["global", "tensor"])
@pytest.mark.parametrize("budget", range(0, 75, 7))
def test_a_mask_has_the_size_of_the_budget(method: str, granularity: str, budget: int) -> None:
    mask = select(method, SelectionRequest(parameters(), budget, granularity))
    assert sum(map(len, mask.values())) == budget
    for name, positions in mask.items():
        assert len(positions) and positions.dtype == torch.int64
        assert bool((positions[1:] > positions[:-1]).all())
        assert positions[0] >= 0 and positions[-1] < parameters()[name].numel()


@pytest.mark.parametrize("budget", range(0, 75, 3))
def test_shares_by_tensor_follow_the_sizes_to_within_one_entry(budget: int) -> None:
    every = parameters()
    mask = select("magnitude", SelectionRequest(every, budget, "tensor"))
    for name, weight in every.items():
        share = budget * weight.numel() / 74
        assert math.floor(share) <= len(mask.get(name, ())) <= math.ceil(share)
        best = weight.flatten().abs().sort(descending=True).indices[: len(mask.get(name, ()))]
        assert sorted(best.tolist()) == (mask[name].tolist() if name in mask else [])


def test_global_magnitude_takes_the_largest_wherever_they_are() -> None:
    every = {"small": torch.tensor([1.0, -3.0]), "large": torch.tensor([-9.0, 2.0, 8.0])}
    mask = select("magnitude", SelectionRequest(every, 3))
    assert {name: positions.tolist() for name, positions in mask.items()} == {"small": [1], "large": [0, 2]}


@pytest.mark.parametrize(("density", "budget"), [(0, 0), (0.005, 5), (0.0004, 0), (0.0006, 1), (1, 1000)])
def test_a_density_is_a_share_of_all_entries(density: float, budget: int) -> None:
    assert budget_of({"a": torch.zeros(10, 90), "b": torch.zeros(100)}, density) == budget


@pytest.mark.parametrize("density", [-0.001, 1.001, math.nan, math.inf])
def test_a_density_that_is_no_share_is_refused(density: float) -> None:
    with pytest.raises(UsageError, match="density is a share"):
        budget_of(parameters(), density)


def test_an_unknown_rule_or_granularity_is_answered_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="unknown selection method 'magnitud', did you mean 'magnitude'"):
        select("magnitud", SelectionRequest(parameters(), 1))
    with pytest.raises(UsageError, match="unknown granularity 'tensors', did you mean 'tensor'"):
        select("magnitude", SelectionRequest(parameters(), 1, "tensors"))


def test_every_rule_of_the_package_is_registered() -> None:
    import sparsehub.selection

    folder = Path(sparsehub.selection.__file__).parent
    others = {"__init__", "registry", "rule", "threshold", "layer_report", "scope", "depth", "rows", "largest"}
    files = {path.stem for path in folder.glob("*.py")} - others
    assert {name.replace("-", "_") for name in rule_names()} == files


def test_every_rule_tells_formula_source_cost_and_data() -> None:
    for name in rule_names():
        text = rule_named(name).__doc__ or ""
        for word in ("Formula: ", "Source: ", "Cost: ", "Data: "):
            assert word in text, (name, word)
