"""The main job: read, choose, train, evaluate, package."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from sparsehub import __version__
from sparsehub.backbone import open_checkpoint
from sparsehub.backbone.tokenizer import load_tokenizer, max_tokens
from sparsehub.delta import DELTA_FILE, Delta, delta_bytes, read_delta
from sparsehub.errors import DataError, FormatError, UsageError
from sparsehub.files import canonical_json, sha256_bytes, sha256_file, strict_json, write_file
from sparsehub.package import Manifest, write_carded_package
from sparsehub.package.manifest import BackboneRef, DeltaRecord, TouchedParameter
from sparsehub.package.model import TaskModel, load_task_model
from sparsehub.patch import apply_patch, make_patch, restore_patch
from sparsehub.selection import SelectionRequest, rule_named, select
from sparsehub.selection.rule import budget_of
from sparsehub.tensorfile import load_tensors, tensor_bytes
from sparsehub.training.batches import Collator, Rows
from sparsehub.training.config import TrainConfig
from sparsehub.training.data import TaskData, load_data
from sparsehub.training.gradients import summed_gradients
from sparsehub.training.loop import evaluate, last_checkpoint, make_trainer, quiet_libraries
from sparsehub.training.memory import return_freed_memory
from sparsehub.training.metrics import best_metric, majority
from sparsehub.training.sparse import SparseModel, candidates

RUN_FILE = "run.json"
MASK_FILE = "selection.safetensors"
Report = Callable[[str], None]


@dataclass(frozen=True)
class Fitted:
    """What training gives, before it is packaged. metrics: by split, of the delta as it will be stored."""

    task_model: TaskModel
    data: TaskData
    delta: Delta | None
    head: Mapping[str, Tensor]
    metrics: dict[str, dict[str, float]]
    training: dict[str, Any]


@dataclass(frozen=True)
class TrainResult:
    folder: Path
    manifest: Manifest

    @property
    def package_bytes(self) -> int:
        return sum(file.stat().st_size for file in self.folder.iterdir())


def train(config: TrainConfig, *, restart: bool = False, report: Report = lambda _: None) -> TrainResult:
    """Train a task and write its package to `config.out`.

    An interrupted run goes on where its last checkpoint was, with the same configuration; `restart` begins anew.
    Raises `UsageError`, `DataError`, `BackboneError`; nothing is left at `config.out` then.
    """
    out = Path(config.out)
    if out.exists():
        raise UsageError(f"{out} exists already", fix="choose another --out or remove this one")
    run = open_run(config, out.absolute().parent / f".{out.name}.run", restart, report)
    fitted = fit(config, run, report=report)
    if fitted.delta is None or not fitted.delta.nnz:
        raise DataError(
            "no weight changed, so there is nothing to package", fix="raise --density, --learning-rate or --epochs"
        )
    manifest = _manifest(config, fitted, fitted.delta)
    manifest = write_carded_package(out, manifest, fitted.delta, fitted.head)
    shutil.rmtree(run)
    report(f"wrote {out}")
    return TrainResult(out, manifest)


def open_run(config: TrainConfig, folder: Path, restart: bool, report: Report) -> Path:
    """The folder in which a run keeps its checkpoints; raises `UsageError` where another run's are there."""
    if restart and folder.exists():
        shutil.rmtree(folder)
    record, identity = folder / RUN_FILE, run_identity(config)
    if record.is_file() and ((folder / MASK_FILE).is_file() or last_checkpoint(folder)):
        if _recorded(record) != identity:
            raise UsageError(
                f"an interrupted run with other settings or other data is kept in {folder}",
                fix="repeat its settings to go on with it, or give --restart to drop it",
            )
        report("going on with an interrupted run")
        return folder
    write_file(record, canonical_json({"identity": identity}))
    return folder


def run_identity(config: TrainConfig) -> str:
    """Equal for two runs that would give the same package: an interrupted run goes on only as itself.

    It covers the settings and the contents of data files, so a file that changed meanwhile begins another run.
    """
    sources = [Path(source) for source in (config.train, config.validation, config.test) if source is not None]
    contents = {str(path): sha256_file(path) for path in sources if path.is_file()}
    return sha256_bytes(canonical_json({"settings": dataclasses.asdict(config), "contents": contents}))


def _recorded(record: Path) -> str | None:
    try:
        return str(strict_json(record.read_bytes(), RUN_FILE)["identity"])
    except (FormatError, KeyError, TypeError):
        return None


def fit(config: TrainConfig, run: Path, *, report: Report = lambda _: None) -> Fitted:
    """Choose entries, train them and the head, and evaluate what would be stored. density 0 trains the head alone."""
    from transformers import set_seed

    return_freed_memory()
    with quiet_libraries():
        data = load_data(config)
        best_metric(data.task, config.metric)
        checkpoint = open_checkpoint(config.backbone, config.revision)
        set_seed(config.seed)
        task_model = load_task_model(checkpoint, data.task, device=_device(config.device))
        tokenizer = load_tokenizer(checkpoint)
        data = _within(data, max_tokens(tokenizer, task_model.backbone.config), report)
        collator = Collator(data.task, tokenizer)
        mask, chosen_in = _choose(config, data, task_model, collator, run, report)
        return_freed_memory()  # what the selection left
        model = SparseModel(task_model, mask)
        trainer = make_trainer(config, data, model, collator, run)
        report(
            f"training {model.values.numel():,} values and {sum(p.numel() for p in model.head.values()):,} of the head"
        )
        start = time.monotonic()
        trainer.train(resume_from_checkpoint=_resume(run, report))
        seconds = {"selection": chosen_in, "training": round(time.monotonic() - start, 1)}
        delta = model.delta(config.value_dtype) if mask else None
        metrics = _evaluate_stored(trainer, data, model, delta, run)
        head = {name: parameter.detach().cpu().clone() for name, parameter in model.head.items()}
    return Fitted(task_model, data, delta, head, metrics, _record(config, data, trainer, seconds))


def _within(data: TaskData, limit: int, report: Report) -> TaskData:
    """The same data with rows cut where the backbone's positions end."""
    if data.task.max_length <= limit:
        return data
    report(f"rows are cut at {limit} tokens, the most that this backbone takes")
    return dataclasses.replace(data, task=dataclasses.replace(data.task, max_length=limit))


def _device(wanted: str | None) -> str:
    cuda = torch.cuda.is_available()
    device = wanted or ("cuda" if cuda else "cpu")
    if device not in ("cpu", *(["cuda"] if cuda else [])):
        raise UsageError("no such device here", found=device, expected="cpu or cuda" if cuda else "cpu")
    return device


def _choose(
    config: TrainConfig, data: TaskData, task_model: TaskModel, collator: Collator, run: Path, report: Report
) -> tuple[dict[str, Tensor], float]:
    """The mask, and the seconds it took; an interrupted run finds the mask it began with."""
    kept = run / MASK_FILE
    if kept.is_file():
        return load_tensors(kept), 0.0
    start = time.monotonic()
    parameters = candidates(task_model)
    budget = budget_of(parameters, config.density)
    gradients = None
    if budget and rule_named(config.method).needs_gradients:
        batches = calibration_batches(config, len(data.train.rows))
        report(f"choosing {budget:,} entries by {config.method} over {batches} batches")
        gradients = _gradients(config, data, task_model, collator, list(parameters), report)
    request = SelectionRequest(parameters, budget, config.granularity, config.seed, gradients)
    mask = select(config.method, request) if budget else {}
    if mask:
        write_file(kept, tensor_bytes(mask))
    return mask, round(time.monotonic() - start, 1)


def _gradients(
    config: TrainConfig, data: TaskData, task_model: TaskModel, collator: Collator, names: list[str], report: Report
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(config.seed)
    loader = DataLoader(
        Rows(data.train), batch_size=config.batch_size, shuffle=True, collate_fn=collator, generator=generator
    )
    batches = [batch for _, batch in zip(range(config.calibration_batches), loader, strict=False)]
    seen = iter(range(1, len(batches) + 1))

    def on_batch() -> None:
        number = next(seen)
        if number % 16 == 0 or number == len(batches):
            report(f"  calibration batch {number} of {len(batches)}")

    return summed_gradients(task_model, batches, names, on_batch)


def calibration_batches(config: TrainConfig, rows: int) -> int:
    """Batches that the rule really looked at: a small data set has fewer than it may."""
    needed = config.density > 0 and rule_named(config.method).needs_gradients
    return min(config.calibration_batches, -(-rows // config.batch_size)) if needed else 0


def _resume(run: Path, report: Report) -> str | None:
    checkpoint = last_checkpoint(run)
    if checkpoint is None:
        return None
    report(f"resuming at step {checkpoint.name.rpartition('-')[2]}")
    return str(checkpoint)


def _evaluate_stored(
    trainer: Any, data: TaskData, model: SparseModel, delta: Delta | None, run: Path
) -> dict[str, dict[str, float]]:
    """Metrics of what will be stored: the delta goes through its file format before it is judged."""
    splits = {name: split for name in ("validation", "test") if (split := getattr(data, name)) is not None}
    patch = None
    if delta is not None:
        model.clear()
    if delta is not None and delta.nnz:
        patch = make_patch(model.backbone, _through_file(delta, run / DELTA_FILE))
        apply_patch(model.backbone.arena, patch)
    try:
        results = {name: evaluate(trainer, data, split) for name, split in splits.items()}
    finally:
        if patch is not None:
            restore_patch(model.backbone.arena, patch)
    baseline = {f"{name} (majority)": majority(data.task, data.train.targets, s.targets) for name, s in splits.items()}
    return {**results, **baseline}


def _through_file(delta: Delta, path: Path) -> Delta:
    write_file(path, delta_bytes(delta))
    shapes = {name: part.shape for name, part in delta.parameters.items()}
    return read_delta(path, shapes, delta.value_kind, delta.value_dtype)


def _record(config: TrainConfig, data: TaskData, trainer: Any, seconds: dict[str, float]) -> dict[str, Any]:
    """What the manifest says about how a package came to be. Paths are kept as names: a folder layout is private."""
    import transformers

    splits = {name: split for name in ("train", "validation", "test") if (split := getattr(data, name)) is not None}
    return {
        "data": {name: {"source": Path(s.source).name, "rows": len(s.rows)} for name, s in splits.items()},
        "steps": trainer.state.global_step,
        "epochs": config.epochs,
        "batch_size": config.batch_size * config.accumulation,
        "learning_rate": config.learning_rate,
        "head_learning_rate": config.head_learning_rate,
        "weight_decay": config.weight_decay,
        "granularity": config.granularity,
        "calibration_batches": calibration_batches(config, len(data.train.rows)),
        "precision": config.precision,
        "seed": config.seed,
        "seconds": seconds,
        "versions": {"sparsehub": __version__, "torch": torch.__version__, "transformers": transformers.__version__},
    }


def _manifest(config: TrainConfig, fitted: Fitted, delta: Delta) -> Manifest:
    backbone = fitted.task_model.backbone
    touched = {
        name: TouchedParameter(part.shape, backbone.digest_of(name), len(part.indices))
        for name, part in delta.parameters.items()
    }
    total = backbone.arena.numel
    return Manifest(
        format_version=1,
        name=config.name,
        version=config.version,
        task=fitted.data.task,
        backbone=BackboneRef(
            id=config.backbone if not Path(config.backbone).is_dir() else Path(config.backbone).resolve().name,
            revision=backbone.checkpoint.revision,
            architecture=backbone.architecture,
            dtype=backbone.checkpoint.dtype,
            fingerprint=backbone.checkpoint.fingerprint,
            parameters=total,
        ),
        delta=DeltaRecord(config.method, delta.nnz / total, delta.nnz, delta.value_kind, delta.value_dtype, touched),
        files={},
        training=fitted.training,
        metrics=fitted.metrics,
        license=config.license,
    )
