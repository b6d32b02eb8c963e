"""Mixout: full fine-tuning in which each forward pass resets a random share of the weights to the backbone's.

Formula: W = W0 + m * v / (1 - p), v the change, m ~ Bernoulli(1 - p) drawn for every entry and pass: dropout on the
change. Outside training W = W0 + v.
Source: Lee, Cho and Kang, "Mixout: Effective Regularization to Finetune Large-scale Pretrained Language Models", ICLR
2020. There the Linear weights are mixed and dropout is switched off; here every entry in scope is mixed and dropout
stays as the backbone has it.
Cost: that of `full`, and a random number per entry and pass. Like `full` it changes every entry.
Options: `probability` p of being reset.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from sparsehub.errors import UsageError
from sparsehub.package.task_model import TaskModel
from sparsehub.training.dense import DenseModel
from sparsehub.training.job import Job, PreparedTraining

defaults: Mapping[str, Any] = {"density": 1.0, "learning_rate": 5e-4}
options: Mapping[str, Any] = {"probability": 0.9}


class MixoutModel(DenseModel):
    """A dense model whose forward passes in training see a mixture of base and trained weights."""

    def __init__(self, task_model: TaskModel, names: Iterable[str], budget: int, probability: float):
        super().__init__(task_model, names, budget)
        self._probability = probability
        self._mixture = torch.ones_like(self.base, dtype=torch.bool)
        self._mixed = False

    @torch.no_grad()
    def before_forward(self, *, learning: bool) -> None:
        if learning:
            self._mixture.bernoulli_(1 - self._probability)
            self.put(lambda place: self.values[place] * self._mixture[place] / (1 - self._probability))
            self._mixed = True
        elif self._mixed:
            self.write()
            self._mixed = False

    def through(self, gradient: Tensor, place: slice) -> None:
        self.gradient()[place].addcmul_(gradient, self._mixture[place], value=1 / (1 - self._probability))


def prepare(job: Job) -> PreparedTraining:
    """Everything in scope is trained, mixed with what it was."""
    probability = job.option("probability")
    if not 0 <= probability < 1:
        raise UsageError(
            "mixout's probability is out of range", found=probability, expected="0 up to, not including, 1"
        )
    return PreparedTraining(MixoutModel(job.task_model, job.scope, job.budget, probability), job.epochs, {})
