"""Child pruning: full fine-tuning that is projected, again and again, onto the changes that the budget admits.

Formula: v <- v - step; every `every` steps v <- the k largest |v|, zero elsewhere; v the change of the weights.
Source: the projection form of `ChildPruning` in Fu et al., AAAI 2023 (after Xu et al., EMNLP 2021, and Mostafa and
Wang, ICML 2019). Their Proposition 1 says why it is unstable: the projection jumps where two entries change places.
Cost: that of `full`, and a top-k over all entries at each projection; the delta is sparse.
Options: `every`, steps between two projections; the last one comes after the last step in any case.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from sparsehub.delta import Delta
from sparsehub.errors import UsageError
from sparsehub.package.task_model import TaskModel
from sparsehub.selection.largest import largest
from sparsehub.training.dense import DenseModel
from sparsehub.training.job import Job, PreparedTraining

defaults: Mapping[str, Any] = {"learning_rate": 5e-4}
options: Mapping[str, Any] = {"every": 10}


class ChildPruningModel(DenseModel):
    """A dense model whose change is cut to its largest entries every few steps."""

    def __init__(self, task_model: TaskModel, names: Iterable[str], budget: int, every: int):
        super().__init__(task_model, names, budget)
        self._every, self._steps = every, 0

    def after_step(self) -> None:
        self._steps += 1
        if self._steps % self._every == 0:
            self.project()

    @torch.no_grad()
    def project(self) -> None:
        """Keep the largest changes, put every other entry back."""
        chosen = largest(self._names, self.changes().__getitem__, self._budget)
        kept = torch.zeros_like(self.values)
        for name, positions in chosen.items():
            place = positions.to(self.values.device) + self.slices[name].start
            kept[place] = self.values[place]
        self.values.copy_(kept)

    def train(self, mode: bool = True) -> ChildPruningModel:
        """What is evaluated is what a package could hold: projected."""
        if self.training and not mode:
            self.project()
            self.write()
        return super().train(mode)  # type: ignore[return-value]

    def delta(self, value_dtype: str) -> Delta:
        self.project()
        self.write()
        return super().delta(value_dtype)


def prepare(job: Job) -> PreparedTraining:
    """Everything in scope is trained, and projected."""
    if job.option("every") < 1:
        raise UsageError("child-pruning projects every so many steps", found=job.option("every"), expected="at least 1")
    model = ChildPruningModel(job.task_model, job.scope, job.budget, job.option("every"))
    return PreparedTraining(model, job.epochs, {})
