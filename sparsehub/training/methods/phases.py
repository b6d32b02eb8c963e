"""The first phase of `lt-sft` and `diff-pruning`: train every weight to find the entries for the second phase."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsehub.errors import UsageError
from sparsehub.files import write_file
from sparsehub.selection.largest import largest
from sparsehub.tensorfile import load_tensors, tensor_bytes
from sparsehub.training.checkpoints import resume_from
from sparsehub.training.dense import DenseModel
from sparsehub.training.job import Job
from sparsehub.training.trainer import make_trainer

FOUND_FILE = "first-phase.safetensors"
FIRST = "first-phase"


@dataclass(frozen=True)
class Found:
    """The result of a first phase."""

    mask: Mapping[str, Tensor]  # by parameter name: flat positions
    start: Mapping[str, Tensor]  # by parameter name: the changes at these positions
    head: Mapping[str, Tensor]  # as it was trained
    steps: int  # that it took


def find_by_training(job: Job, make: Callable[[], DenseModel]) -> Found:
    """Train the model that `make` gives for the first phase, and take its largest changes.

    Afterwards the backbone and the head are as before. The result is kept in the run's folder: a resumed run reads it.
    """
    kept = job.run / FOUND_FILE
    if not kept.is_file():
        found = _train(job, make())
        if job.processes.first:
            write_file(kept, tensor_bytes(_flat(found)))
        return found
    return _unflat(load_tensors(kept))


def share(job: Job) -> float:
    """The part of the epochs that the first phase takes; raises `UsageError`."""
    first = float(job.option("first"))
    if not 0 < first < 1:
        raise UsageError("the first phase is a share of the epochs", found=first, expected="between 0 and 1")
    return first


def _train(job: Job, model: DenseModel) -> Found:
    epochs = job.epochs * share(job)
    fresh = {name: parameter.detach().clone() for name, parameter in model.head.items()}
    job.report(f"first phase: {model.values.numel():,} values for {epochs:g} epochs")
    folder = job.run / FIRST
    trainer = make_trainer(job, model, epochs, folder, judged=False)
    trainer.train(resume_from_checkpoint=resume_from(folder, job.report))
    changes = model.changes()
    mask = largest(changes, changes.__getitem__, job.budget)
    start = {name: changes[name].cpu()[positions].clone() for name, positions in mask.items()}
    head = {name: parameter.detach().cpu().clone() for name, parameter in model.head.items()}
    model.clear()
    set_head(model.head, fresh)
    return Found(mask, start, head, int(trainer.state.global_step))


@torch.no_grad()
def set_head(head: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Copy values into the head's parameters."""
    for name, parameter in head.items():
        parameter.copy_(values[name])


def _flat(found: Found) -> dict[str, Tensor]:
    parts = {"mask": found.mask, "start": found.start, "head": found.head}
    flat = {f"{part}.{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}
    return {**flat, "steps": torch.tensor(found.steps)}


def _unflat(tensors: Mapping[str, Tensor]) -> Found:
    def part(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}

    return Found(part("mask."), part("start."), part("head."), int(tensors["steps"]))
