"""`--layers` with every way of training: what changes, and what the package says of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from sparsehub.errors import UsageError
from sparsehub.package import read_package
from sparsehub.training import TrainConfig, fit, train
from sparsehub.training.data import load_data
from sparsehub.training.fitting import open_job
from sparsehub.training.job import prepare
from sparsehub.training.methods.adapter import AdapterModel

# One selection rule stands for all of them, which share one road; each method that acts while training has its own.
METHODS = ("sam", "bitfit", "full", "mixout", "lt-sft", "diff-pruning", "child-pruning", "lora")
DENSITY = {"bitfit": 0.1, "full": 1.0, "mixout": 1.0}
LAST = ("encoder.layer.1.", "pooler.")


@pytest.mark.parametrize("method", METHODS)
def test_nothing_outside_the_layers_changes_and_the_package_says_so(config: TrainConfig, method: str) -> None:
    shallow = dataclasses.replace(config, method=method, density=DENSITY.get(method, 0.02), layers="last:1")
    package = read_package(train(shallow).folder)
    assert package.manifest.delta is not None
    assert all(name.startswith(LAST) for name in package.delta.parameters)
    assert any(name.startswith("encoder.") for name in package.delta.parameters)
    assert package.manifest.delta.layers == (1, 2)
    assert package.manifest.training["layers"] == "last:1"


def test_patterns_and_layers_together(config: TrainConfig, tmp_path: Path) -> None:
    scoped = dataclasses.replace(config, layers="0-0", exclude=("*.bias",), epochs=1)
    lines: list[str] = []
    fitted = fit(scoped, tmp_path / "run", report=lines.append)
    assert fitted.delta is not None
    assert all(n.startswith("encoder.layer.0.") and not n.endswith(".bias") for n in fitted.delta.parameters)
    assert "layers that may change: 0-0 of 2" in lines


def test_an_adapter_has_no_bottlenecks_outside_the_layers(config: TrainConfig, tmp_path: Path) -> None:
    scoped = dataclasses.replace(config, method="adapter", layers="last:1")
    (tmp_path / "run").mkdir()
    model = prepare(open_job(scoped, load_data(scoped), tmp_path / "run", lambda _: None)).model
    assert isinstance(model, AdapterModel)
    assert {name.split("-")[2] for name in model.bottlenecks} == {"1"}


def test_a_backbone_of_fewer_layers_is_refused_before_anything_is_trained(config: TrainConfig, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"layers last:3 are more than this backbone has.*2 layers"):
        fit(dataclasses.replace(config, layers="last:3"), tmp_path / "run")
    with pytest.raises(UsageError, match="last:2, first:2"):
        dataclasses.replace(config, layers="deep")
