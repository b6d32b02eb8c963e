"""Fits a task: chooses entries, trains them and the head, and evaluates what would be stored."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsehub import __version__
from sparsehub.backbone import open_checkpoint
from sparsehub.backbone.layers import layer_list
from sparsehub.backbone.tokenizer import load_tokenizer, max_tokens
from sparsehub.delta import DELTA_FILE, Delta, delta_bytes, read_delta
from sparsehub.errors import UsageError
from sparsehub.files import write_file
from sparsehub.memory import TRAINING, return_freed_memory
from sparsehub.package.manifest import HEAD_METHOD
from sparsehub.package.results import LEARNING_CURVE, RESULTS, stated
from sparsehub.package.task_model import TaskModel, load_task_model, on_pooled_states
from sparsehub.package.task_spec import EMBEDDING, TEXT_GENERATION, HeadSpec
from sparsehub.patch import make_patch, patched
from sparsehub.selection import by_layer
from sparsehub.selection.depth import ALL
from sparsehub.training.baselines import PROBE, baselines, probe_scores, report_baseline, with_frozen_scores
from sparsehub.training.batches import Collator
from sparsehub.training.calibration import calibration_batches
from sparsehub.training.checkpoints import ended_at, note_end, resume_from
from sparsehub.training.config import TrainConfig
from sparsehub.training.data import Split, TaskData, load_data
from sparsehub.training.gradients import head_of
from sparsehub.training.head_candidates import head_candidates
from sparsehub.training.job import EPOCHS, Job, PreparedTraining, Report, prepare
from sparsehub.training.language_modeling import tokenised
from sparsehub.training.learning_curve import learning_curve
from sparsehub.training.methods.phases import set_head
from sparsehub.training.metrics import best_metric
from sparsehub.training.probe import Probe, best_probe
from sparsehub.training.processes import join_processes, speaks, wait_for_all
from sparsehub.training.sources import Source
from sparsehub.training.sparse_model import SparseModel
from sparsehub.training.split_results import split_results
from sparsehub.training.tracking import tracking
from sparsehub.training.trainable import Trainable, candidates
from sparsehub.training.trainer import Judgement, evaluate, improved, make_trainer, quiet_libraries

ASIDE = "aside"  # folder of a run for what was trained and a package cannot hold
Metrics = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Fitted:
    """What `fit` gives: a trained task before it is packaged."""

    task_model: TaskModel
    data: TaskData
    delta: Delta | None  # None where only the head was trained, or where the method changes no weights
    head: Mapping[str, Tensor]
    metrics: Metrics  # by split, of the delta as it will be stored
    training: dict[str, Any]  # how it came to be, for the manifest
    losses: dict[str, float]  # by split, of the delta as it will be stored
    uncut_losses: dict[str, float]  # the same before the budget cut what was trained; empty where it did not
    aside: Path | None = None  # a folder with what a package cannot hold, where there is any


def fit(config: TrainConfig, run: Path, *, data: TaskData | None = None, report: Report = lambda _: None) -> Fitted:
    """Choose entries, train them and the head, and evaluate what would be stored. density 0 trains the head alone.

    data: rows that are read already, instead of the configuration's. Started by torchrun or `accelerate launch`, every
    process takes part, and each returns the same.
    """
    return_freed_memory(TRAINING)
    with quiet_libraries():
        job = open_job(config, data or load_data(config, report if speaks() else silent), run, report)
        start = time.monotonic()
        prepared = _prepare(job)
        chosen_in = time.monotonic() - start
        trainer = make_trainer(job, prepared.model, ended_at(run) or prepared.epochs, run)
        if prepared.epochs and config.epochs is None and job.epochs > EPOCHS:
            job.report(f"few rows: {job.epochs:g} epochs in place of {EPOCHS:g}")
        job.report(_what_is_trained(prepared.model))
        with tracking(dataclasses.replace(job.config, epochs=job.epochs), trainer, job.report) as tracker:
            tracker.log_baselines(probe_scores(job))
            start = time.monotonic()
            if prepared.epochs:
                trainer.train(resume_from_checkpoint=resume_from(run, job.report))
                note_end(trainer, run)
            seconds = {"selection": round(chosen_in, 1), "training": round(time.monotonic() - start, 1)}
            fitted = _finish(job, prepared, trainer, seconds)
            tracker.log_baselines(fitted.training["baselines"])
            tracker.log_package(fitted.metrics, fitted.losses)
        return fitted


def open_job(config: TrainConfig, data: TaskData, run: Path, report: Report) -> Job:
    """Everything that a run needs before it begins; raises `UsageError`, `DataError`, `BackboneError`."""
    from transformers import set_seed

    config, device = config.resolved(), device_named(config.device)
    best_metric(data.task, config.metric)
    processes = join_processes(device)
    report = report if processes.first else silent
    checkpoint = open_checkpoint(str(config.backbone), config.revision)
    set_seed(config.seed)
    heads = head_candidates(config, data.task, checkpoint)
    data = with_task(data, heads[0])
    task_model = load_task_model(checkpoint, data.task, device=device)
    tokenizer = load_tokenizer(checkpoint)
    data = _within(data, max_tokens(tokenizer, task_model.backbone.config), report)
    job = Job(config, data, task_model, Collator(data.task, tokenizer), run, processes, report)
    if config.has_linear_head:
        return _with_probe(job, heads)
    if data.task.kind == EMBEDDING:
        return with_frozen_scores(job)
    if data.task.kind == TEXT_GENERATION:
        keep_no_cache(task_model.model)
        data = _as_tokens(data, tokenizer, config.packing)
    return Job(config, data, task_model, Collator(data.task, tokenizer), run, processes, report)


def with_task(data: TaskData, head: HeadSpec) -> TaskData:
    """The same rows for a task with this head."""
    return dataclasses.replace(data, task=dataclasses.replace(data.task, head=head))


def _with_probe(job: Job, heads: Sequence[HeadSpec]) -> Job:
    """The job with the better probe's head, which training starts from; each process has that of the first."""
    tasks = [dataclasses.replace(job.data.task, head=head) for head in heads]
    splits = {"train": job.data.train, **job.data.judged}

    def probe() -> Probe:
        tokenizer = job.collator.tokenizer
        return best_probe(job.task_model.backbone, tasks, tokenizer, splits, job.config.metric, job.run)

    if job.processes.first:
        probe()
    wait_for_all()
    found = probe()  # read from the run's folder
    data = with_task(job.data, found.head)
    task_model = on_pooled_states(job.task_model.backbone, data.task)
    set_head(head_of(task_model), found.start)
    report_baseline(job, "probe on the frozen backbone", found)
    collator = dataclasses.replace(job.collator, task=data.task)
    return dataclasses.replace(job, data=data, task_model=task_model, collator=collator, probe=found)


def keep_no_cache(model: Any) -> None:
    """With a cache transformers would let packed texts see each other: it looks at positions only without one."""
    model.config.use_cache = False


def _as_tokens(data: TaskData, tokenizer: Any, packing: bool) -> TaskData:
    """The same data tokenised. Only training rows are packed: the others are judged one by one."""
    judged = {name: tokenised(split, data.task, tokenizer) for name, split in data.judged.items()}
    train = tokenised(data.train, data.task, tokenizer, packed=packing)
    return TaskData(data.task, train, judged.get("validation"), judged.get("test"))


def silent(_: str) -> None:
    """Other processes than the first say nothing."""


def _within(data: TaskData, limit: int, report: Report) -> TaskData:
    """The same data with rows cut where the backbone's positions end."""
    if data.task.max_length <= limit:
        return data
    report(f"rows are cut at {limit} tokens, the most that this backbone takes")
    return dataclasses.replace(data, task=dataclasses.replace(data.task, max_length=limit))


def device_named(wanted: str | None) -> str:
    """The device to train on; raises `UsageError` for one that is not there."""
    cuda = torch.cuda.is_available()
    device = wanted or ("cuda" if cuda else "cpu")
    if device not in ("cpu", *(["cuda"] if cuda else [])):
        raise UsageError("no such device here", found=device, expected="cpu or cuda" if cuda else "cpu")
    return device


def _prepare(job: Job) -> PreparedTraining:
    if not job.budget and job.config.method != HEAD_METHOD:
        return PreparedTraining(SparseModel(job.task_model, {}), job.epochs, {})
    if job.config.layers != ALL:
        job.report(f"layers that may change: {job.config.layers} of {layer_list(job.task_model.backbone).count}")
    prepared = prepare(job)
    if prepared.mask:
        for line in by_layer(prepared.mask, _shapes(job)):
            job.report(f"  {line.part}: {line.chosen:,} of {line.entries:,} ({line.density:.3%})")
    return prepared


def _shapes(job: Job) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in candidates(job.task_model).items()}


def _what_is_trained(model: Trainable) -> str:
    own, head = (sum(p.numel() for p in found.values()) for found in (model.own(), model.head))
    return f"training {own:,} values and {head:,} of the head"


def _finish(job: Job, prepared: PreparedTraining, trainer: Any, seconds: dict[str, float]) -> Fitted:
    model, kind = prepared.model, job.data.task.kind
    generates, embeds = kind == TEXT_GENERATION, kind == EMBEDDING
    back = prepared.epochs > 0 and model.packages and not improved(job, trainer)
    delta = model.delta(job.config.value_dtype) if job.budget and model.packages and not back else None
    aside = job.run / ASIDE if model.save_aside(job.run / ASIDE, writes=job.processes.first) else None
    uncut = evaluate(trainer, job, job.data.judged) if model.kept < 1 else None
    if delta is not None or back:
        model.clear()
    if back and job.probe is not None:
        set_head(model.head, job.probe.tensors)
        which = "frozen backbone" if embeds else "probe"
        kept = "no delta" if embeds else "its head and no delta"
        job.report(f"no epoch is better than the {which}: the package has {kept}")
    untouched = evaluate(trainer, job, job.data.judged).metrics if generates and delta is not None else {}
    found = _judge_stored(job, trainer, delta)
    head = {name: parameter.detach().cpu().clone() for name, parameter in model.head.items()}
    record = _record(job, prepared.steps + trainer.state.global_step, seconds)
    record["trained"] = sum(parameter.numel() for parameter in model.own().values())
    if prepared.mask:
        record["selection"] = {line.part: line.chosen for line in by_layer(prepared.mask, _shapes(job))}
    if uncut is not None:  # what the budget has cost
        record["before_packaging"] = {"metrics": uncut.metrics, "share_of_squared_norm_kept": round(model.kept, 6)}
    if back:
        record["chosen"] = "before the first step"
    record["baselines"] = baselines(job, untouched)
    record |= _course(job, trainer, found, back=back)
    beside = {(split, name): row for split, its in record["baselines"].items() for name, row in its.items()}
    baseline = {f"{split} ({name})": row for (split, name), row in beside.items() if name != PROBE}
    metrics, data = {**found.metrics, **baseline}, dataclasses.replace(job.data, task=found.task)
    uncut_losses = dict(uncut.losses) if uncut is not None else {}
    return Fitted(job.task_model, data, delta, head, metrics, record, dict(found.losses), uncut_losses, aside)


def _course(job: Job, trainer: Any, found: Judgement, *, back: bool) -> dict[str, Any]:
    """How the run went, where the package is of one of its epochs, and where the task is right: of the test split,
    or of the rows that chose the epoch."""
    split = next((name for name in ("test", "validation") if name in found.outputs), None)
    its = split_results(found.task, split, found.outputs[split], job.config.examples) if split else None
    metric = best_metric(job.data.task, job.config.metric)
    curve = None if back else learning_curve(trainer.state, metric)
    return {name: stated(value) for name, value in ((LEARNING_CURVE, curve), (RESULTS, its)) if value is not None}


def _judge_stored(job: Job, trainer: Any, delta: Delta | None) -> Judgement:
    """Judge what will be stored: the delta goes through its file format before."""
    if delta is None or not delta.nnz:
        return evaluate(trainer, job, job.data.judged)
    patch = make_patch(job.task_model.backbone, _through_file(delta, job.run / f"{job.processes.rank}-{DELTA_FILE}"))
    with patched(job.task_model.backbone.arena, patch):
        return evaluate(trainer, job, job.data.judged)


def _through_file(delta: Delta, path: Path) -> Delta:
    write_file(path, delta_bytes(delta))
    shapes = {name: part.shape for name, part in delta.parameters.items()}
    return read_delta(path, shapes, delta.value_kind, delta.value_dtype)


def _record(job: Job, steps: int, seconds: dict[str, float]) -> dict[str, Any]:
    """What the manifest says about how a package came to be. Paths are kept as names: a folder layout is private."""
    import transformers

    config, data = job.config, job.data
    splits = {"train": data.train, **data.judged}
    return {
        "data": {n: {**_origin(getattr(config, n), s), "rows": len(s.rows)} for n, s in splits.items()},
        "steps": steps,
        "epochs": job.epochs,
        "batch_size": job.batch_rows * config.accumulation,
        "learning_rate": config.learning_rate,
        "head_learning_rate": config.head_learning_rate,
        "weight_decay": config.weight_decay,
        "schedule": config.schedule,
        "layers": "" if config.layers == ALL else config.layers,
        "granularity": config.granularity,
        "calibration_batches": calibration_batches(job),
        "head_steps": config.head_steps,
        "options": config.options,
        "precision": config.precision,
        "seed": config.seed,
        "seconds": seconds,
        "versions": {"sparsehub": __version__, "torch": torch.__version__, "transformers": transformers.__version__},
    }


def _origin(given: Source | None, split: Split) -> dict[str, str]:
    """The name of a split's file or data set; a table in memory has none."""
    return {"source": Path(split.source).name} if given is None or isinstance(given, str | Path) else {}
