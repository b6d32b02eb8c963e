"""What the refits leave out, what is measured on it, and the arithmetic of the bound."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsehub.backbone.tokenizer import load_tokenizer
from sparsehub.errors import UsageError
from sparsehub.package.task_spec import HEADED_KINDS
from sparsehub.training import TrainConfig, fit
from sparsehub.training.batches import Collator
from sparsehub.training.losses import lipschitz, row_losses, trained
from sparsehub.training.stability import RUNS_FILE, Stability, measure_stability, theorem_1
from sparsehub.training.stability_plan import Plan

Configure = Callable[..., TrainConfig]


@pytest.fixture
def config(make_config: Configure) -> TrainConfig:
    base = make_config(epochs=2, learning_rate=3e-3)
    return dataclasses.replace(base, test=base.train)


@pytest.mark.parametrize("kind", HEADED_KINDS)
def test_losses_of_rows_average_to_the_loss_of_all(make_config: Configure, tmp_path: Path, kind: str) -> None:
    fitted = fit(make_config(kind, warmup=0.0), tmp_path / "run")
    arena = fitted.task_model.backbone.arena
    before = arena.digest()
    with trained(fitted):
        assert arena.digest() != before
        losses = row_losses(fitted, fitted.data.train)
    assert arena.digest() == before
    assert losses.shape == (len(fitted.data.train.rows),)
    if kind != "token-classification":  # there the whole is a mean over tokens, not over rows
        assert float(losses.mean()) == pytest.approx(fitted.losses["validation"], rel=1e-3)


def test_rho_is_the_largest_gradient_norm_of_a_row(config: TrainConfig, tmp_path: Path) -> None:
    fitted = fit(config, tmp_path / "run")
    assert fitted.delta is not None
    with trained(fitted):
        found = lipschitz(fitted, fitted.data.train)
        parameters = dict(fitted.task_model.backbone.module.named_parameters())
        collator = Collator(fitted.data.task, load_tokenizer(fitted.task_model.backbone.checkpoint))
        norms = []
        for row, target in zip(fitted.data.train.rows, fitted.data.train.targets, strict=True):
            wanted = [parameters[name].requires_grad_(True) for name in fitted.delta.parameters]
            loss = fitted.task_model.model(**collator([(row, target)])).loss
            gradients = torch.autograd.grad(loss, wanted)
            parts = zip(gradients, fitted.delta.parameters.values(), strict=True)
            norms.append(float(torch.cat([g.flatten()[part.indices] for g, part in parts]).norm()))
    assert found == pytest.approx(max(norms), rel=1e-4)
    assert all(parameter.grad is None for parameter in fitted.task_model.model.parameters())


def test_refits_leave_rows_out_and_are_not_repeated(config: TrainConfig, tmp_path: Path) -> None:
    plan = Plan(refits=2, left_out=0.25, seeds=1, one_out=2)
    said: list[str] = []
    (found,) = measure_stability(config, plan, tmp_path / "out", report=said.append)
    lines = [json.loads(line) for line in (tmp_path / "out" / RUNS_FILE).read_text().splitlines()]
    assert [line["kind"] for line in lines] == ["whole", "left-out", "left-out", "seed", "one-out", "one-out"]
    assert [len(line["losses"]) for line in lines] == [12, 3, 3, 0, 1, 1]
    assert lines[1]["losses"].keys() != lines[2]["losses"].keys()
    whole = lines[0]
    changes = [abs(loss - whole["losses"][row]) for line in lines[1:3] for row, loss in line["losses"].items()]
    assert found.removed == pytest.approx(statistics.mean(changes)) and max(changes) > 0
    assert found.score == whole["score"] and len(found.scores) == 2 and len(found.seed_scores) == 2
    assert found.gap == pytest.approx(statistics.mean(line["test_loss"] - line["train_loss"] for line in lines))
    assert found.bound == pytest.approx(found.rho**2 / ((1 - found.density) * 12)) and found.rho > 0
    assert sum(line.startswith("refit ") for line in said) == 6
    said.clear()
    (tmp_path / "out" / RUNS_FILE).open("a").write('{"kind": "half a li')
    assert measure_stability(config, plan, tmp_path / "out", report=said.append) == [found] and said == []
    assert not (tmp_path / "out" / "run").exists()
    more = dataclasses.replace(plan, seeds=2)  # one refit more, after the half line
    for _ in range(2):
        measure_stability(config, more, tmp_path / "out", report=said.append)
    assert sum(line.startswith("refit ") for line in said) == 1


def test_a_sweep_goes_through_densities(config: TrainConfig, tmp_path: Path) -> None:
    found = measure_stability(config, Plan(1, 0.25, 0, 0, (0.01, 0.05)), tmp_path / "out")
    assert [round(point.density, 3) for point in found] == [0.01, 0.05]
    assert all(point.one_out is None and point.spread == 0.0 for point in found)


def test_the_bound_grows_with_density_and_says_nothing_at_the_end() -> None:
    bounds = [theorem_1(2.0, density, 100) for density in (0.0, 0.5, 0.9)]
    assert bounds == pytest.approx([0.04, 0.08, 0.4])
    assert theorem_1(2.0, 1.0, 100) is None


@pytest.mark.parametrize(
    ("changes", "plan", "message"),
    [
        ({"method": "adapter"}, Plan(), "changes no weights"),
        ({"test": None, "validation": None}, Plan(), "not trained on"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    config: TrainConfig, tmp_path: Path, changes: dict[str, Any], plan: Plan, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        measure_stability(dataclasses.replace(config, **changes), plan, tmp_path / "out")


@pytest.mark.parametrize("wrong", [{"left_out": 0.0}, {"left_out": 1.0}, {"refits": -1}])
def test_a_plan_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Plan(**wrong)


def test_pictures_are_drawn(tmp_path: Path) -> None:
    from sparsehub.training.stability_plots import draw_stability, draw_sweep

    points = [
        Stability(p, 10, 0.8, (0.7, 0.8), (0.8, 0.82), 0.1 + p, 0.05, 0.2, 1.0, theorem_1(1.0, p, 50))
        for p in (0.01, 0.1, 1.0)
    ]
    draw_stability(points[0], "a title", tmp_path / "one.png")
    draw_sweep(points, "a title", tmp_path / "sweep.png")
    for name in ("one.png", "sweep.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_losses_of_texts_are_those_of_their_next_tokens(tiny_language: Any, tmp_path: Path) -> None:
    texts = tmp_path / "rows.jsonl"
    texts.write_text("".join(json.dumps({"text": f"Why is the tide {word}?"}) + "\n" for word in ("in", "out", "late")))
    config = TrainConfig(
        backbone=str(tiny_language.folder), kind="text-generation", name="tide", train=str(texts), text=("text",),
        out="unused", validation=str(texts), epochs=1, batch_size=1, max_length=32, device="cpu",
    )  # fmt: skip
    fitted = fit(config, tmp_path / "run")
    with trained(fitted):
        losses = row_losses(fitted, fitted.data.train)
        collator = Collator(fitted.data.task, load_tokenizer(fitted.task_model.backbone.checkpoint))
        rows = zip(fitted.data.train.rows, fitted.data.train.targets, strict=True)
        alone = [float(fitted.task_model.model(**collator([row])).loss) for row in rows]
    assert losses.tolist() == pytest.approx(alone, rel=1e-4)
