"""What a run is held against: the commonest answer, the probe, and the backbone as it is."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from sparsehub.errors import DataError
from sparsehub.package.task_spec import EMBEDDING, TEXT_GENERATION
from sparsehub.training.evaluation import outputs_of
from sparsehub.training.job import Job
from sparsehub.training.metrics import compute, majority, mean_loss
from sparsehub.training.probe import Probe

MAJORITY, PROBE, BACKBONE = "majority", "probe", "backbone"  # as manifests name them
Scores = dict[str, float]


def with_frozen_scores(job: Job) -> Job:
    """The job of an embedding, with what the frozen backbone's own vectors are worth; raises `DataError` for a single
    row, which has no other to be told from."""
    if len(job.data.train.rows) < 2:
        raise DataError("an embedding learns to tell rows apart", found="one training row", expected="many")
    found = _frozen_embedding(job)
    report_baseline(job, "the frozen backbone", found)
    return dataclasses.replace(job, probe=found)


def _frozen_embedding(job: Job) -> Probe:
    task, tokenizer = job.data.task, job.collator.tokenizer
    found = {name: outputs_of(job.task_model.model, task, tokenizer, split) for name, split in job.data.judged.items()}
    metrics = {name: compute(task, its.logits, its.targets) for name, its in found.items()}
    losses = {name: mean_loss(task, its.logits, its.targets) for name, its in found.items()}
    return Probe(task.head, {}, metrics, losses, held_out=0.0, modesty=1.0, calibrated={})


def report_baseline(job: Job, name: str, found: Probe) -> None:
    """Say how good a baseline is, split by split."""
    for split, scores in found.metrics.items():
        job.report(f"{name}, {split}: " + "  ".join(f"{n} {v:.4f}" for n, v in scores.items()))


def baselines(job: Job, untouched: Mapping[str, Scores]) -> dict[str, dict[str, Scores]]:
    """By split, the scores of each baseline by its name. untouched: of the backbone, for a generation of text."""
    task, probed = job.data.task, probe_scores(job)
    if task.kind == TEXT_GENERATION:
        return {name: {BACKBONE: scores} for name, scores in untouched.items()}
    if task.kind == EMBEDDING:
        return probed
    found = {n: {MAJORITY: majority(task, job.data.train.targets, s.targets)} for n, s in job.data.judged.items()}
    return {name: {**row, **probed.get(name, {})} for name, row in found.items()}


def probe_scores(job: Job) -> dict[str, dict[str, Scores]]:
    """By split, the scores of what the run starts from: the probe, or an embedding's frozen vectors; {} for none."""
    name = BACKBONE if job.data.task.kind == EMBEDDING else PROBE
    found = job.probe.metrics if job.probe is not None else {}
    return {split: {name: dict(found[split])} for split in job.data.judged if split in found}
