"""transformers' Trainer around the sparse model: accumulation, clipping, stopping, the best evaluation."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from sparsehub.training import TrainConfig, fit
from sparsehub.training.sparse_model import SparseModel

Configure = Callable[..., TrainConfig]


def final_values(config: TrainConfig, run: Path) -> Tensor:
    delta = fit(config, run).delta
    assert delta is not None
    return torch.cat([delta.parameters[name].values for name in sorted(delta.parameters)])


def test_accumulated_batches_make_the_step_of_one_large_batch(
    make_config: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One step over all 12 rows, at once or in three parts; dropout off, since it would draw other masks."""
    monkeypatch.setattr(SparseModel, "train", lambda self, mode=True: self)
    step = {"method": "random", "epochs": 1, "warmup": 0.0, "validation": None, "clip": 0.0}
    whole = final_values(make_config(batch_size=12, **step), tmp_path / "whole")
    parts = final_values(make_config(batch_size=4, accumulation=3, **step), tmp_path / "parts")
    assert len(whole) == len(parts)
    near = (whole - parts).abs() < 1e-3
    assert near.float().mean() > 0.97  # Adam's first step is a sign: only entries with no gradient to speak of differ


def test_clipping_acts_on_values_and_head_together(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    norms: list[float] = []
    kept = SparseModel.optimizer

    def spied(self: SparseModel, **rates: float) -> torch.optim.Optimizer:
        optimizer = kept(self, **rates)

        def look(*_: Any) -> None:
            gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
            assert len(gradients) == 3  # values, classifier.weight, classifier.bias
            norms.append(float(torch.cat([gradient.flatten() for gradient in gradients]).norm()))

        optimizer.register_step_pre_hook(look)
        return optimizer

    monkeypatch.setattr(SparseModel, "optimizer", spied)
    for clip in (0.01, 0.0):
        fit(dataclasses.replace(config, clip=clip, epochs=1, validation=None), tmp_path / f"run{clip}")
    clipped, free = norms[:3], norms[3:]
    assert clipped == pytest.approx([0.01] * 3, rel=1e-3)
    assert min(free) > 0.02


def test_a_run_stops_when_nothing_gets_better(config: TrainConfig, tmp_path: Path) -> None:
    patient = dataclasses.replace(config, learning_rate=1e-9, head_learning_rate=0.0, patience=2, epochs=30)
    assert fit(patient, tmp_path / "run").training["steps"] == 9  # the first evaluation, and two that are no better
    again = fit(patient, tmp_path / "run")  # as after a crash before its package was written
    assert again.training["steps"] == 9, "it was trained further"


def test_patience_lasts_over_an_interruption(config: TrainConfig, tmp_path: Path) -> None:
    patient = dataclasses.replace(config, learning_rate=1e-9, head_learning_rate=0.0, patience=2, epochs=30)
    fit(patient, tmp_path / "run")
    (tmp_path / "run" / "ended.json").unlink()
    shutil.rmtree(tmp_path / "run" / "checkpoint-9")  # killed before its third evaluation
    assert fit(patient, tmp_path / "run").training["steps"] == 9


def test_the_best_evaluation_is_the_one_that_is_kept(config: TrainConfig, tmp_path: Path, monkeypatch: Any) -> None:
    """The metric falls from the first evaluation on, so the last epochs are thrown away."""
    from sparsehub.training import trainer

    falling = iter(range(100, 0, -1))

    def judged(*_: Any) -> dict[str, float]:
        return {"accuracy": next(falling) / 100, "macro_f1": 0.0, "matthews": 0.0, "f1": 0.0}

    monkeypatch.setattr(trainer, "compute", judged)
    fitted = fit(dataclasses.replace(config, epochs=4, metric="accuracy"), tmp_path / "run")
    monkeypatch.undo()
    first = load_file(tmp_path / "run" / "checkpoint-3" / "model.safetensors")["values"]
    assert fitted.delta is not None
    kept = torch.cat([fitted.delta.parameters[name].values for name in sorted(fitted.delta.parameters)])
    assert torch.equal(kept, first[first != 0])


def test_evaluating_by_steps_instead_of_epochs(config: TrainConfig, tmp_path: Path) -> None:
    fit(dataclasses.replace(config, evaluation_steps=2, epochs=2), tmp_path / "run")
    assert {path.name for path in (tmp_path / "run").glob("checkpoint-*")} <= {
        "checkpoint-2",
        "checkpoint-4",
        "checkpoint-6",
    }
