"""What a training method gets (`Job`) and what it gives back (`PreparedTraining`)."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from sparsehub.backbone.layers import layer_list
from sparsehub.package.task_model import TaskModel
from sparsehub.selection.depth import ALL, depth
from sparsehub.selection.rule import budget_of
from sparsehub.selection.scope import in_depth, in_scope
from sparsehub.training.batches import Collator, TokenTable, TrainingRows
from sparsehub.training.config import TrainConfig
from sparsehub.training.data import Split, TaskData
from sparsehub.training.method import method_named
from sparsehub.training.probe import Probe
from sparsehub.training.processes import Processes
from sparsehub.training.trainable import Trainable, candidates

Report = Callable[[str], None]
EPOCHS, MOST_EPOCHS, STEPS = 5.0, 20.0, 60  # of a run whose `epochs` are left open


@dataclass(frozen=True)
class Job:
    """One run, as every training method gets it."""

    config: TrainConfig  # resolved: nothing is left to the method; its epochs may be open, see below
    data: TaskData
    task_model: TaskModel  # with a fresh head; a linear one is the probe's
    collator: Collator
    run: Path  # a folder for what must outlive an interruption
    processes: Processes
    report: Report
    probe: Probe | None = None  # the head that the run starts from, and its baseline; where the head is linear

    @property
    def epochs(self) -> float:
        """Passes over the training rows: as told, else `EPOCHS`; of few rows, from a probe, as many as make `STEPS`
        steps, but no more than `MOST_EPOCHS`. Measured with eight rows a class: five epochs of 48 rows are 15 steps,
        which is too few; sixty of 16 rows know them by heart."""
        if self.config.epochs is not None:
            return self.config.epochs
        if self.probe is None:
            return EPOCHS
        return max(EPOCHS, min(MOST_EPOCHS, float(math.ceil(STEPS / self.steps_an_epoch))))

    @property
    def steps_an_epoch(self) -> int:
        """Steps of the optimiser in one pass over the training rows."""
        return math.ceil(len(self.data.train.rows) / (self.batch_rows * self.config.accumulation))

    @property
    def budget(self) -> int:
        """How many entries of the backbone may change."""
        if self.config.nnz is not None:
            return self.config.nnz
        return budget_of(candidates(self.task_model), self.config.density or 0.0)

    @property
    def scope(self) -> dict[str, Tensor]:
        """The backbone's parameters that the method may change, by name; raises `UsageError` where there is none."""
        config, every = self.config, candidates(self.task_model)
        found = in_scope(every, config.include, config.exclude)
        if config.layers == ALL:
            return found
        return in_depth(found, depth(config.layers), layer_list(self.task_model.backbone))

    @property
    def sampled(self) -> bool:
        """Whether Linear gradients come from sampled products: torch has those for a CPU and for float32 alone."""
        config, cpu = self.config, self.task_model.backbone.device.type == "cpu"
        return cpu and config.precision == "float32" and config.compile is None

    @property
    def batch_rows(self) -> int:
        """Rows of one batch over all processes, before accumulation."""
        return self.config.batch_size * self.processes.count

    def rows(self, split: Split) -> Any:
        """A split as a torch data set for the job's collator."""
        if self.config.preload:
            return TokenTable(split, self.collator, self.task_model.backbone.device)
        return TrainingRows(split)

    def option(self, name: str) -> Any:
        """One of the method's own settings."""
        return self.config.options[name]


@dataclass(frozen=True)
class PreparedTraining:
    """What a training method hands back: a model that is ready to be trained."""

    model: Trainable
    epochs: float  # to train it for
    mask: Mapping[str, Tensor]  # the entries that were chosen, by parameter; empty where none were
    steps: int = 0  # of the optimiser that it took to choose them


def prepare(job: Job) -> PreparedTraining:
    """What the method of a job makes of it; raises what the method raises."""
    method: Any = importlib.import_module(method_named(job.config.method).module)
    prepared: PreparedTraining = method.prepare(job)
    return prepared
