"""What a selection rule asks of the training rows, over a stated number of batches, shared among the processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from sparsehub.package.task_model import TaskModel
from sparsehub.selection import rule_named, rule_names
from sparsehub.training.fisher import batch_squares, row_squares
from sparsehub.training.gradients import (
    Batch,
    OnBatch,
    clipped_gradients,
    head_of,
    on_device,
    requires_grad,
    summed_gradients,
)
from sparsehub.training.hessian import hessian_diagonal
from sparsehub.training.job import Job
from sparsehub.training.processes import sum_over_processes

REPORTED = 16  # batches between two lines of progress


def collect_statistics(job: Job, names: Sequence[str]) -> dict[str, Mapping[str, Tensor]]:
    """The statistics that the job's rule needs, by name and parameter; the same in every process."""
    # other probes in every process
    seed = job.config.seed * job.processes.count + job.processes.rank
    collect = collectors(job.task_model, job.config.options, seed)
    found: dict[str, Mapping[str, Tensor]] = {}
    needs = rule_named(job.config.method).needs
    batches = _batches(job) if needs else []
    for need in needs:
        mine = batches[job.processes.rank :: job.processes.count]
        job.report(f"  {need} over {len(batches)} batches")
        found[need] = collect[need](mine, names, _counter(job, len(mine)))
        sum_over_processes(found[need].values())
    return found


Collect = Callable[[Sequence[Batch], Sequence[str], OnBatch], dict[str, Tensor]]


def collectors(model: TaskModel, options: Mapping[str, Any], seed: int) -> dict[str, Collect]:
    """How each statistic is collected, by the names of `STATISTICS`."""
    return {
        "gradient": lambda batches, names, tick: summed_gradients(model, batches, names, tick),
        "clipped_gradient": lambda batches, names, tick: clipped_gradients(model, batches, names, tick),
        "row_squares": lambda batches, names, tick: row_squares(model, batches, names, tick),
        "batch_squares": lambda batches, names, tick: batch_squares(model, batches, names, tick),
        "hessian": lambda batches, names, tick: hessian_diagonal(
            model, batches, names, tick, probes=int(options["probes"]), seed=seed
        ),
    }


def calibration_batches(job: Job) -> int:
    """Batches that the method's rule really looks at: each row once at most, and none where it needs none."""
    looks = job.budget and job.config.method in rule_names() and rule_named(job.config.method).needs
    return min(job.config.calibration_batches or 0, -(-len(job.data.train.rows) // job.batch_rows)) if looks else 0


def _loader(job: Job, seed: int) -> DataLoader[Batch]:
    return DataLoader(
        job.rows(job.data.train),
        batch_size=job.batch_rows,
        shuffle=True,
        collate_fn=job.collator,
        generator=torch.Generator().manual_seed(seed),
    )


def _batches(job: Job) -> list[Batch]:
    wanted = calibration_batches(job)
    return [batch for _, batch in zip(range(wanted), _loader(job, job.config.seed), strict=False)]


def _counter(job: Job, batches: int) -> OnBatch:
    seen = iter(range(1, batches + 1))

    def on_batch() -> None:
        number = next(seen)
        if number % REPORTED == 0 or number == batches:
            job.report(f"  calibration batch {number} of {batches}")

    return on_batch


def warm_up_head(job: Job) -> None:
    """Train the head alone for `head_steps` batches, so that gradients say more than how a random head was drawn."""
    steps = job.config.head_steps
    if not steps:
        return
    job.report(f"  the head alone for {steps} steps")
    head = head_of(job.task_model)
    optimizer = torch.optim.AdamW(head.values(), lr=job.config.head_learning_rate, weight_decay=0.0)
    job.task_model.model.train()
    with requires_grad(head.values(), True):
        done = 0
        for epoch in range(steps):  # an epoch has a step at least
            for _, batch in zip(range(steps - done), _loader(job, job.config.seed + 1 + epoch), strict=False):
                job.task_model.model(**on_device(batch, job.task_model)).loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                done += 1
    job.task_model.model.eval()
