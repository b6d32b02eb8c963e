"""`--layers auto`: which layers it keeps, and that what it keeps is what these layers give when they are named."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsehub.errors import UsageError
from sparsehub.package import Package, read_package
from sparsehub.selection.depth import margin_of
from sparsehub.training import TrainConfig, fewest_layers, train
from sparsehub.training.fitting import Fitted, fit
from sparsehub.training.stability import Plan, measure_stability


def scored(monkeypatch: pytest.MonkeyPatch, scores: Mapping[str, float]) -> list[str]:
    """Fits whose validation accuracies are these, by layers; returns which were made, in order."""
    made: list[str] = []

    def fit_scored(config: TrainConfig, run: Path, **given: Any) -> Fitted:
        made.append(config.layers)
        fitted = fit(config, run, **given)
        return dataclasses.replace(fitted, metrics=fitted.metrics | {"validation": {"accuracy": scores[config.layers]}})

    monkeypatch.setattr(fewest_layers, "fit", fit_scored)
    return made


def same_weights(left: Package, right: Package) -> bool:
    pairs = [(left.head, right.head)]
    assert left.delta.parameters.keys() == right.delta.parameters.keys()
    for name, part in left.delta.parameters.items():
        other = right.delta.parameters[name]
        pairs.append(({"values": part.values}, {"values": other.values}))
        assert torch.equal(part.indices, other.indices)
    return all(torch.equal(tensor, theirs[name]) for ours, theirs in pairs for name, tensor in ours.items())


@pytest.mark.parametrize(
    ("layers", "scores", "chosen"),
    [
        ("auto:0.01", {"last:1": 0.895, "all": 0.9}, "last:1"),
        ("auto:0.01", {"last:1": 0.88, "all": 0.9}, "all"),
        ("auto:0.05", {"last:1": 0.86, "all": 0.9}, "last:1"),
        ("auto:0.01", {"last:1": 0.06, "all": 0.07}, "last:1"),  # in binary .07 less .01 is more than .06
    ],
)
def test_the_package_is_that_of_the_fewest_layers_within_the_margin(
    config: TrainConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    layers: str,
    scores: dict[str, float],
    chosen: str,
) -> None:
    told: list[str] = []
    fits = scored(monkeypatch, scores)
    found = read_package(train(dataclasses.replace(config, layers=layers), report=told.append).folder)
    assert fits == ["last:1", "all"]  # each once: a fit of the tiny backbone, which has two layers
    training = found.manifest.training
    assert training["layers"] == ("" if chosen == "all" else chosen)
    assert training["layers_tried"] == scores and training["layers_margin"] == margin_of(layers)
    assert any(line.startswith(f"layers {chosen}: the fewest") for line in told)
    named = dataclasses.replace(config, layers=chosen, out=str(tmp_path / "named"))
    assert same_weights(found, read_package(train(named).folder))


def test_a_lower_perplexity_is_the_better_score(monkeypatch: pytest.MonkeyPatch, config: TrainConfig) -> None:
    """And the margin is a share of it."""
    monkeypatch.setattr(fewest_layers, "LOWER_IS_BETTER", ("accuracy",))
    for score, kept in ((19.0, "last:1"), (20.19, "last:1"), (20.21, "")):
        scored(monkeypatch, {"last:1": score, "all": 20.0})
        out = f"{config.out}-{score}"
        trained = read_package(train(dataclasses.replace(config, layers="auto:0.01", out=out)).folder)
        assert trained.manifest.training["layers"] == kept


def test_a_fit_that_stopped_early_is_what_was_compared(config: TrainConfig) -> None:
    """Also after it was interrupted: who reads it again does not train it further."""
    patient = dataclasses.replace(config, layers="auto:1", patience=1, epochs=30, learning_rate=1e-2)
    trained = read_package(train(patient).folder)
    training = trained.manifest.training
    assert training["layers"] == "last:1" and training["steps"] < 30 * 3
    assert training["layers_tried"]["last:1"] == pytest.approx(trained.manifest.metrics["validation"]["accuracy"])


def test_few_rows_are_compared_by_a_margin_that_is_named_alone(config: TrainConfig) -> None:
    with pytest.raises(UsageError, match=r"cannot tell scores apart.*auto:0\.05"):
        train(dataclasses.replace(config, layers="auto"))


def test_an_interrupted_comparison_goes_on(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = dataclasses.replace(config, layers="auto:0.01")
    scored(monkeypatch, {"last:1": 0.9})  # all layers have no score: the run fails after their fit
    with pytest.raises(KeyError):
        train(deep)
    scored(monkeypatch, {"last:1": 0.9, "all": 0.9})
    told: list[str] = []
    assert train(deep, report=told.append).manifest.training["layers"] == "last:1"
    assert "going on with an interrupted run" in told
    assert sum(line.startswith("resuming at step") for line in told) == 2, told  # neither is trained twice


def test_what_cannot_be_compared_is_refused(config: TrainConfig, tmp_path: Path) -> None:
    for changed, message in [
        ({"validation": None, "metric": None}, "validation split"),
        ({"method": "head", "density": None}, "nothing to compare"),
        ({"method": "adapter"}, "nothing to compare"),
        ({"include": ("*layer.0.*",)}, "--include|include"),
        ({"layers": "auto:1.5"}, "margin is a number from 0 to 1"),
        ({"layers": "auto:deep"}, "margin is a number from 0 to 1"),
    ]:
        with pytest.raises(UsageError, match=message):
            dataclasses.replace(config, **{"layers": "auto", **changed})
    with pytest.raises(UsageError, match="one set of layers"):
        measure_stability(dataclasses.replace(config, layers="auto"), Plan(), tmp_path)
