"""SpIEL: while training, entries that moved least make room for those that the loss would move most.

Formula: every `every` steps, in each weight of a linear layer in scope, the share rate * (1 - step / steps) of its
entries with the smallest change leaves, and as many candidates with the largest |sum of gradients| come. Candidates are
the entries with the largest gradient in the first of the `accumulate` steps before, as many as the weight has chosen
ones; gradients are summed at them alone. What leaves gets the backbone's value back; what comes begins with no change,
and with the optimiser's moments as the sums say. The first entries are random, and after `accumulate` steps all are
replaced.
Source: Ansell et al., "Scaling Sparse Fine-Tuning to Large Language Models", 2024 (arXiv 2401.16405), SpIEL-AG, as in
their released code (https://github.com/AlanAnsell/peft).
Cost: that of a mask that is chosen once; sampled gradients, which know no entries but the chosen, are not used.
Options: `every`, `accumulate` (of a short run no more than half of its steps), `rate`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sparsehub.errors import UsageError
from sparsehub.kernels import gather, scatter_copy_
from sparsehub.package.task_model import TaskModel
from sparsehub.selection import SelectionRequest, select
from sparsehub.training.job import Job, PreparedTraining
from sparsehub.training.methods.lora import linear_weights
from sparsehub.training.sparse_model import SparseModel
from sparsehub.training.trainer import steps_of

defaults: Mapping[str, Any] = {}
options: Mapping[str, Any] = {"every": 20, "accumulate": 5, "rate": 0.2}
POSITIONS, DONE = "positions", "done"  # in a checkpoint of the run, beside what is trained


@dataclass(frozen=True)
class Reselection:
    """When entries are replaced, and how many."""

    every: int  # steps
    accumulate: int  # steps in which gradients are summed before each replacement
    rate: float  # share of the entries that is replaced at first; it falls to zero
    steps: int  # of the whole training

    def looks(self, done: int) -> bool:
        """Whether the step after `done` ones is looked at."""
        return done < self.accumulate or done % self.every >= self.every - self.accumulate

    def share(self, done: int) -> float:
        """The share of the entries that is replaced after `done` steps."""
        if done == self.accumulate:
            return 1.0
        return self.rate * max(0.0, 1 - done / self.steps) if done % self.every == 0 else 0.0


class Candidates:
    """Entries of one weight that may come, and the sums of their gradients since they were first seen."""

    def __init__(self, gradient: Tensor, count: int):
        self.positions = gradient.abs().topk(min(count, len(gradient))).indices
        self.sums, self.squares = torch.zeros((2, len(self.positions)), device=gradient.device)
        self.seen = 0

    def add(self, gradient: Tensor) -> None:
        found = gather(gradient, self.positions).float()
        self.sums += found
        self.squares.addcmul_(found, found)
        self.seen += 1


class SpielModel(SparseModel):
    """A sparse model whose entries change while it is trained; each weight keeps as many as it began with."""

    def __init__(self, task_model: TaskModel, mask: Mapping[str, Tensor], plan: Reselection):
        super().__init__(task_model, mask)
        self._plan, self._done = plan, 0
        self._candidates: dict[str, Candidates] = {}
        self._optimizer: torch.optim.Optimizer | None = None

    def optimizer(self, **rates: float) -> torch.optim.Optimizer:
        self._optimizer = super().optimizer(**rates)
        return self._optimizer

    @torch.no_grad()
    def saw(self, name: str, gradient: Tensor) -> None:
        if not self._plan.looks(self._done):
            return
        flat = gradient.reshape(-1)
        if name not in self._candidates:
            self._candidates[name] = Candidates(flat, len(self._mask[name]))
        self._candidates[name].add(flat)

    @torch.no_grad()
    def after_step(self) -> None:
        self._done += 1
        share = self._plan.share(self._done)
        if share:
            for name, found in self._candidates.items():
                self._replace(name, found, share)
            self._candidates.clear()

    def _replace(self, name: str, found: Candidates, share: float) -> None:
        leaving, best = exchange(self._mask[name], self.values[self._slices[name]], found, share)
        coming = found.positions[best]
        self._put_back(name, self._mask[name][leaving], self._base[name][leaving])
        self._mask[name][leaving] = coming
        self._base[name][leaving] = gather(self._flat(name), coming).float()
        self.values[self._slices[name]][leaving] = 0.0
        order = self._mask[name].argsort()
        self._mask[name], self._base[name] = self._mask[name][order], self._base[name][order]
        seen = (found.sums[best] / found.seen, found.squares[best] / found.seen)
        for state in (self.values, *self._moments(name, leaving, *seen)):
            state[self._slices[name]] = state[self._slices[name]][order]

    def _put_back(self, name: str, positions: Tensor, base: Tensor) -> None:
        scatter_copy_(self._flat(name), positions, base.to(self._flat(name).dtype))

    def _moments(self, name: str, leaving: Tensor, mean: Tensor, square: Tensor) -> list[Tensor]:
        """AdamW's two moments, at the entries that come set to what was seen of their gradients. All entries share one
        step count, so its correction for a start at zero is put in."""
        if self._optimizer is None or self.values not in self._optimizer.state:
            return []
        state, group = self._optimizer.state[self.values], self._optimizer.param_groups[0]
        for moment, seen, beta in zip(("exp_avg", "exp_avg_sq"), (mean, square), group["betas"], strict=True):
            state[moment][self._slices[name]][leaving] = seen * (1 - beta ** float(state["step"]))
        return [state["exp_avg"], state["exp_avg_sq"]]

    def state_dict(self, *_: Any, **__: Any) -> dict[str, Tensor]:  # type: ignore[override]
        positions = torch.cat([self._mask[name] for name in self._slices])
        return super().state_dict() | {POSITIONS: positions, DONE: torch.tensor(self._done)}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor], strict: bool = True, assign: bool = False) -> Any:
        for name, place in self._slices.items():
            self._put_back(name, self._mask[name], self._base[name])
            self._mask[name] = state[POSITIONS][place].to(self._mask[name]).clone()
            self._base[name] = gather(self._flat(name), self._mask[name]).float()
        self._done = int(state[DONE])
        self._candidates.clear()
        return super().load_state_dict(state, strict, assign)


def exchange(mask: Tensor, changes: Tensor, found: Candidates, share: float) -> tuple[Tensor, Tensor]:
    """Which entries leave (places in the mask) and which candidates come for them (places in theirs), as many.

    An entry that would leave and come again stays as it is.
    """
    leaving = changes.abs().topk(int(len(changes) * share), largest=False).indices
    stays = torch.ones_like(mask, dtype=torch.bool)
    stays[leaving] = False
    able = torch.nonzero(~torch.isin(found.positions, mask[stays])).flatten()
    best = able[found.sums[able].abs().topk(min(len(leaving), len(able))).indices]
    again = torch.isin(mask[leaving], found.positions[best])
    best = best[~torch.isin(found.positions[best], mask[leaving])]
    return leaving[~again][: len(best)], best


def prepare(job: Job) -> PreparedTraining:
    """A random mask over the weights of the linear layers in scope, which training changes."""
    plan = Reselection(job.option("every"), job.option("accumulate"), job.option("rate"), steps_of(job, job.epochs))
    _check(job, plan)
    plan = replace(plan, accumulate=min(plan.accumulate, plan.steps // 2))
    scope = job.scope
    weights = {name: scope[name] for name in linear_weights(job.task_model, scope)}
    mask = select("random", SelectionRequest(weights, job.budget, seed=job.config.seed))
    return PreparedTraining(SpielModel(job.task_model, mask, plan), job.epochs, {})


def _check(job: Job, plan: Reselection) -> None:
    """Raises `UsageError` for a plan that makes no sense, and for runs in which gradients are not whole or scaled."""
    if not (1 <= plan.accumulate < plan.every and 0 < plan.rate <= 1 and not math.isnan(plan.rate)):
        raise UsageError(
            "spiel looks at some of the steps between two exchanges",
            found=f"every {plan.every}, accumulate {plan.accumulate}, rate {plan.rate}",
            expected="1 <= accumulate < every, 0 < rate <= 1",
        )
    if plan.steps < 2:
        raise UsageError("training ends before spiel has chosen entries", found="1 step", fix="raise --epochs")
    if job.processes.count > 1 or job.config.precision == "float16":
        raise UsageError(
            "spiel trains in one process, in float32 or bfloat16",
            found=f"{job.processes.count} processes, {job.config.precision}",
        )
