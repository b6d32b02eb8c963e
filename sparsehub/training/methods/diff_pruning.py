"""Diff pruning: every entry has a change and a gate; open gates add a penalty to the loss, and the widest are kept.

Formula: W = W0 + z * v, z = min(1, max(0, s (r - l) + l)), s = sigmoid(log u - log(1 - u) + a), u uniform, l = -1.5,
r = 1.5: hard concrete gates, differentiable in a. Loss + penalty * mean P(z > 0), P = sigmoid(a - log(-l / r)). After
the first phase the k largest |z v| (z at u = 1/2) are kept and trained on, from where they are.
Source: Guo, Rush and Kim, "Parameter-Efficient Transfer Learning with Diff Pruning", ACL 2021; hard concrete gates:
Louizos, Welling and Kingma, ICLR 2018. Their penalty on the sum for BERT-large (1.25e-7) is about 40 on the mean.
Cost: that of `full` twice over: gates have gradients and moments too.
Options: `first`, the share of the epochs with gates; `penalty`; `gate_learning_rate`; `gate_start`, the first a.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sparsehub.package.task_model import TaskModel
from sparsehub.training.dense import DenseModel
from sparsehub.training.job import Job, PreparedTraining
from sparsehub.training.methods.phases import find_by_training, set_head, share
from sparsehub.training.sparse_model import SparseModel, not_the_head

defaults: Mapping[str, Any] = {"learning_rate": 5e-4}
options: Mapping[str, Any] = {"first": 0.5, "penalty": 40.0, "gate_learning_rate": 0.1, "gate_start": 5.0}
LEAST, MOST = -1.5, 1.5  # l and r
SURE = 1e-6  # u stays this far from 0 and 1


class GatedModel(DenseModel):
    """A dense model in which every entry's change is multiplied by a gate of its own."""

    def __init__(
        self, task_model: TaskModel, names: Iterable[str], budget: int, *, penalty: float, rate: float, start: float
    ):
        super().__init__(task_model, names, budget)
        self._penalty, self._rate = penalty, rate
        self.gates = nn.Parameter(torch.full_like(self.base, start))
        self._open, self._slope = torch.ones_like(self.base), torch.zeros_like(self.base)
        self.leave_to_us(not_the_head(self))

    def own(self) -> dict[str, nn.Parameter]:
        return {"values": self.values, "gates": self.gates}

    def unsynchronised(self) -> list[Tensor]:
        return [self.gradient(), self._gate_gradient()]

    def _gate_gradient(self) -> Tensor:
        if self.gates.grad is None:
            self.gates.grad = torch.zeros_like(self.gates)
        return self.gates.grad

    def optimizer(self, *, learning_rate: float, head_learning_rate: float, weight_decay: float) -> Any:
        """The optimizer of `DenseModel`, with the gates in a group of their own, without weight decay."""
        optimizer = super().optimizer(
            learning_rate=learning_rate, head_learning_rate=head_learning_rate, weight_decay=weight_decay
        )
        optimizer.param_groups[0]["params"] = [self.values]
        optimizer.add_param_group({"params": [self.gates], "lr": self._rate, "weight_decay": 0.0})
        optimizer.register_step_pre_hook(lambda *_: self._pay())
        return optimizer

    @torch.no_grad()
    def _pay(self) -> None:
        """The penalty's own gradient: once a step, whatever the number of passes, and never clipped."""
        likely = torch.sigmoid(self.gates - math.log(-LEAST / MOST))
        self._gate_gradient().addcmul_(likely, 1 - likely, value=self._penalty / self.gates.numel())

    @torch.no_grad()
    def before_forward(self, *, learning: bool) -> None:
        noise = torch.rand_like(self.gates).clamp_(SURE, 1 - SURE).logit_() if learning else 0.0
        smooth = torch.sigmoid(self.gates + noise)
        stretched = smooth * (MOST - LEAST) + LEAST
        self._open = stretched.clamp(0, 1)
        self._slope = (MOST - LEAST) * smooth * (1 - smooth) * ((stretched > 0) & (stretched < 1))
        self.write()

    def through(self, gradient: Tensor, place: slice) -> None:
        self.gradient()[place].addcmul_(gradient, self._open[place])
        self._gate_gradient()[place].addcmul_(gradient, self.values.detach()[place] * self._slope[place])

    @torch.no_grad()
    def write(self) -> None:
        self.put(lambda place: self._open[place] * self.values[place])

    def changes(self) -> dict[str, Tensor]:
        gates = (torch.sigmoid(self.gates) * (MOST - LEAST) + LEAST).clamp(0, 1)
        return {name: (gates[place] * self.values[place]).detach() for name, place in self.slices.items()}


def prepare(job: Job) -> PreparedTraining:
    """Gates first, then the entries behind the widest ones alone."""

    def gated() -> GatedModel:
        return GatedModel(
            job.task_model,
            job.scope,
            job.budget,
            penalty=job.option("penalty"),
            rate=job.option("gate_learning_rate"),
            start=job.option("gate_start"),
        )

    found = find_by_training(job, gated)
    model = SparseModel(job.task_model, found.mask, found.start, sampled=job.sampled)
    set_head(model.head, found.head)
    return PreparedTraining(model, job.epochs * (1 - share(job)), found.mask, found.steps)
