"""SpIEL: its exchanges beside a plain loop over entries, and what a run of it keeps to."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sparsehub.errors import UsageError
from sparsehub.package.task_model import TaskModel
from sparsehub.training import TrainConfig, fit
from sparsehub.training.methods.spiel import DONE, POSITIONS, Candidates, Reselection, SpielModel, exchange

NAMES = ("encoder.layer.0.attention.self.query.weight", "encoder.layer.1.output.dense.weight")
PLAN = Reselection(every=4, accumulate=2, rate=0.5, steps=10)
RATES = {"learning_rate": 0.1, "head_learning_rate": 0.0, "weight_decay": 0.0}


def model_of(task_model: TaskModel, entries: int = 12) -> SpielModel:
    generator = torch.Generator().manual_seed(1)
    numel = {name: task_model.backbone.arena.slots[name].numel for name in NAMES}
    mask = {name: torch.randperm(n, generator=generator)[:entries].sort().values for name, n in numel.items()}
    return SpielModel(task_model, mask, PLAN)


def gradients(task_model: TaskModel, step: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    shapes = {name: task_model.backbone.arena.slots[name].shape for name in NAMES}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def step(model: SpielModel, found: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> None:
    """A step of the optimiser, as hooks and Trainer make it."""
    model.values.grad = torch.zeros_like(model.values)
    for name, gradient in found.items():
        model.saw(name, gradient)
        model.values.grad[model._slices[name]] = gradient.flatten()[model._mask[name]]
    optimizer.step()


class Plain:
    """The same in plain Python: dense dictionaries of changes and moments, an entry at a time."""

    def __init__(self, positions: list[int]):
        self.change = dict.fromkeys(positions, 0.0)
        self.first, self.second = dict.fromkeys(positions, 0.0), dict.fromkeys(positions, 0.0)
        self.seen: dict[int, list[float]] = {}
        self.done = 0

    def step(self, gradient: list[float]) -> None:
        if self.done in (0, 1, 2, 3, 6, 7):  # two steps before the exchanges after 2, 4 and 8 steps
            if not self.seen:
                order = sorted(range(len(gradient)), key=lambda i: -abs(gradient[i]))
                self.seen = {i: [] for i in order[: len(self.change)]}
            for i, kept in self.seen.items():
                kept.append(gradient[i])
        self.done += 1
        for i in self.change:
            self.first[i] = 0.9 * self.first[i] + 0.1 * gradient[i]
            self.second[i] = 0.999 * self.second[i] + 0.001 * gradient[i] ** 2
            size = (self.second[i] / (1 - 0.999**self.done)) ** 0.5 + 1e-8
            self.change[i] -= 0.1 * self.first[i] / (1 - 0.9**self.done) / size
        share = {2: 1.0, 4: 0.5 * (1 - 4 / 10), 8: 0.5 * (1 - 8 / 10)}.get(self.done)
        if share is not None:
            self.exchange(int(len(self.change) * share))

    def exchange(self, count: int) -> None:
        leaving = sorted(self.change, key=lambda i: abs(self.change[i]))[:count]
        able = [i for i in self.seen if i not in self.change or i in leaving]
        best = sorted(able, key=lambda i: -abs(sum(self.seen[i])))[:count]
        coming = [i for i in best if i not in leaving]
        for out, new in zip([i for i in leaving if i not in best], coming, strict=False):
            for kept in (self.change, self.first, self.second):
                del kept[out]
            found = self.seen[new]
            self.change[new] = 0.0
            self.first[new] = sum(found) / len(found) * (1 - 0.9**self.done)
            self.second[new] = sum(g * g for g in found) / len(found) * (1 - 0.999**self.done)
        self.seen = {}


def test_exchanges_are_those_of_a_plain_loop_over_entries(task_model: TaskModel) -> None:
    model = model_of(task_model)
    optimizer = model.optimizer(**RATES)
    base = {name: task_model.backbone.arena.view(name).clone() for name in NAMES}
    plain = {name: Plain(model._mask[name].tolist()) for name in NAMES}
    for number in range(10):
        found = gradients(task_model, number)
        step(model, found, optimizer)
        for name in NAMES:
            plain[name].step(found[name].double().flatten().tolist())
            assert model._mask[name].tolist() == sorted(plain[name].change)
            wanted = [plain[name].change[i] for i in sorted(plain[name].change)]
            assert model.values[model._slices[name]].tolist() == pytest.approx(wanted, abs=1e-4)
            change = torch.zeros(base[name].numel())
            change[model._mask[name]] = model.values.detach()[model._slices[name]]
            assert torch.equal(task_model.backbone.arena.view(name), base[name] + change.view(base[name].shape))


def test_a_checkpoint_holds_the_entries_and_goes_on_as_if_nothing_had_been(task_model: TaskModel) -> None:
    model = model_of(task_model)
    optimizer = model.optimizer(**RATES)
    for number in range(3):
        step(model, gradients(task_model, number), optimizer)
    state, kept = model.state_dict(), {name: task_model.backbone.arena.view(name).clone() for name in NAMES}
    assert int(state[DONE]) == 3 and len(state[POSITIONS]) == len(model.values)
    for number in range(3, 9):
        step(model, gradients(task_model, number), optimizer)
    model.load_state_dict(state)
    assert all(torch.equal(task_model.backbone.arena.view(name), kept[name]) for name in NAMES)
    assert torch.equal(model.state_dict()[POSITIONS], state[POSITIONS])


def test_an_entry_that_would_leave_and_come_again_stays() -> None:
    mask, changes = torch.tensor([2, 5, 7, 9]), torch.tensor([0.1, 3.0, 0.2, 4.0])
    found = Candidates(torch.tensor([0, 0, 9.0, 0, 8.0, 0, 0, 0, 0, 7.0]), 3)  # 2 (chosen, leaving), 4, 9 (chosen)
    found.add(torch.tensor([0, 0, 9.0, 0, 8.0, 0, 0, 0, 0, 7.0]))
    leaving, best = exchange(mask, changes, found, 0.5)
    assert mask[leaving].tolist() == [7] and found.positions[best].tolist() == [4]


def test_no_weight_gets_more_entries_and_none_outside_the_linear_layers(config: TrainConfig, tmp_path: Path) -> None:
    options = {"every": 3, "accumulate": 1, "rate": 0.5}
    fitted = fit(dataclasses.replace(config, method="spiel", epochs=3, options=options), tmp_path / "run")
    assert fitted.delta is not None
    assert all(len(part.shape) == 2 and "embeddings" not in name for name, part in fitted.delta.parameters.items())
    assert fitted.delta.nnz <= round(0.02 * fitted.task_model.backbone.arena.numel)


@pytest.mark.parametrize(
    ("options", "epochs", "says"),
    [({"accumulate": 20}, 2, "1 <= accumulate < every"), ({"rate": 0.0}, 2, "0 < rate <= 1"), ({}, 0.1, "1 step")],
)
def test_plans_that_make_no_sense_are_refused(
    config: TrainConfig, tmp_path: Path, options: dict[str, float], epochs: float, says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        fit(dataclasses.replace(config, method="spiel", epochs=epochs, options=options), tmp_path / "run")
