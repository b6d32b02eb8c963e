"""A training run from its settings to a package on disk: `sparsehub train` and `sparsehub.train` are this."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsehub.backbone.layers import layer_list
from sparsehub.delta import Delta
from sparsehub.errors import DataError, FormatError, SparsehubError, UsageError
from sparsehub.files import canonical_json, sha256_bytes, strict_json, write_file
from sparsehub.package import Manifest, read_manifest, write_package
from sparsehub.package.manifest import CONFIGURATION, FORMAT_VERSION, HEAD_METHOD
from sparsehub.package.manifest_builder import backbone_ref, delta_record
from sparsehub.package.task_spec import EMBEDDING
from sparsehub.selection.depth import margin_of
from sparsehub.training.checkpoints import last_checkpoint
from sparsehub.training.config import TrainConfig
from sparsehub.training.data import SPLITS
from sparsehub.training.fewest_layers import fit_fewest_layers
from sparsehub.training.fitting import Fitted, Metrics, device_named, fit
from sparsehub.training.job import Report
from sparsehub.training.method import method_named
from sparsehub.training.methods.phases import FIRST, FOUND_FILE
from sparsehub.training.methods.selected import MASK_FILE
from sparsehub.training.processes import Processes, join_processes, wait_for_all
from sparsehub.training.sources import source_digest, source_name

RUN_FILE = "run.json"
BESIDE = ("report_to",)  # settings without a part in what a package holds
FAILED_FILE = "failed"  # marks a run that ended by an error, not by its user


@dataclass(frozen=True)
class TrainResult:
    """What `train` gives: the package that it wrote."""

    folder: Path
    manifest: Manifest
    aside: Path | None = None  # a folder beside the package with what that cannot hold, a LoRA for instance

    @property
    def package_bytes(self) -> int:
        return sum(file.stat().st_size for file in self.folder.iterdir())


@dataclass(frozen=True)
class Measured:
    """What `measure` gives: how good a method is whose result no package can hold."""

    folder: Path  # with what was trained
    metrics: Metrics
    training: dict[str, Any]  # how, as a manifest would say it


def train(config: TrainConfig, *, restart: bool = False, report: Report = lambda _: None) -> TrainResult:
    """Train a task and write its package to `config.out`.

    An interrupted run goes on where its last checkpoint was, with the same configuration; `restart` begins anew.
    Started by torchrun or `accelerate launch`, the first process writes and all return the same.
    Raises `UsageError`, `DataError`, `BackboneError`; nothing is left at `config.out` then.
    """
    if not method_named(config.method).packages:
        raise UsageError(
            f"{config.method} adds layers to the model, and a package holds changes of the backbone's weights alone",
            fix="call `measure`, which trains it and writes no package",
        )
    out = Path(config.out)
    with _run_of(config, restart, report) as (run, processes):
        fitted = (fit if margin_of(config.layers) is None else fit_fewest_layers)(config, run, report=report)
        changed = fitted.delta is not None and fitted.delta.nnz > 0
        alone = config.has_linear_head or config.kind == EMBEDDING or config.method == HEAD_METHOD
        if not changed and not alone:
            raise DataError(
                "no weight changed, so there is nothing to package",
                fix="raise --density, --learning-rate or --epochs, or give --method head",
            )
        aside = out.with_name(f"{out.name}-{config.method}") if fitted.aside else None
        if processes.first:
            write_fitted(out, config, fitted)
            _keep_aside(fitted, aside)
            shutil.rmtree(run)
            report(f"wrote {out}")
        wait_for_all()
    return TrainResult(out, read_manifest(out), aside)


def write_fitted(out: Path, config: TrainConfig, fitted: Fitted) -> None:
    """Write the package of what `fit` gave for these settings; `train` and benchmarks, which judge it too, do."""
    write_package(out, _manifest(config, fitted), fitted.delta or Delta({}), fitted.head)


def measure(config: TrainConfig, *, restart: bool = False, report: Report = lambda _: None) -> Measured:
    """Train with a method whose result no package can hold; `config.out` gets a folder with what was trained."""
    out = Path(config.out)
    with _run_of(config, restart, report) as (run, processes):
        fitted = fit(config, run, report=report)
        if processes.first:
            _keep_aside(fitted, out)
            shutil.rmtree(run)
        wait_for_all()
    return Measured(out, fitted.metrics, fitted.training)


@contextmanager
def _run_of(config: TrainConfig, restart: bool, report: Report) -> Iterator[tuple[Path, Processes]]:
    """The folder in which a run keeps what it can go on with, for the time of the run.

    Where the settings or the data are at fault, nothing of it is left. After Ctrl-C, and after a failure that a
    repeated run may not meet (a full disk, no memory), what there is to go on with is left, and `report` says how.
    """
    out = Path(config.out)
    if out.exists():
        raise UsageError(f"{out} exists already", fix="choose another --out or remove this one")
    processes = join_processes(device_named(config.device))
    run = out.absolute().parent / f".{out.name}.run"
    resumed = False
    if processes.first:
        open_run(config, run, restart, report)
        resumed = _has_begun(run)
    wait_for_all()
    try:
        yield run, processes
    except BaseException as error:
        if processes.first and isinstance(error, SparsehubError) and not resumed:
            shutil.rmtree(run, ignore_errors=True)
        elif processes.first:
            _leave(run, failed=isinstance(error, Exception), report=report)
        raise


def _leave(run: Path, *, failed: bool, report: Report) -> None:
    """Keep of a run that ends early what the same run can go on with. failed: another run may drop it unasked."""
    if not _has_begun(run):
        shutil.rmtree(run, ignore_errors=True)
        report("nothing is left of this run; the same command begins anew")
        return
    if failed:
        (run / FAILED_FILE).touch()
    report("the same command goes on where this one was; sparsehub train --restart begins anew")


def _keep_aside(fitted: Fitted, place: Path | None) -> None:
    if fitted.aside is not None and place is not None:
        if place.exists():
            shutil.rmtree(place)  # of an earlier run into the same package folder, which is gone
        fitted.aside.rename(place)


def open_run(config: TrainConfig, folder: Path, restart: bool, report: Report) -> Path:
    """The folder in which a run keeps its checkpoints; raises `UsageError` where another run's are there."""
    if restart and folder.exists():
        shutil.rmtree(folder)
    record, identity = folder / RUN_FILE, run_identity(config)
    if record.is_file() and _has_begun(folder):
        if _recorded(record) != identity and (folder / FAILED_FILE).exists():
            report("dropping what is left of a run that failed with other settings or other data")
            return open_run(config, folder, True, report)
        if _recorded(record) != identity:
            raise UsageError(
                f"an interrupted run with other settings or other data is kept in {folder}",
                fix="repeat its settings to go on with it, or give --restart to drop it",
            )
        (folder / FAILED_FILE).unlink(missing_ok=True)
        report("going on with an interrupted run")
        return folder
    write_file(record, canonical_json({"identity": identity}))
    return folder


def _has_begun(folder: Path) -> bool:
    """Whether there is something to go on with."""
    fits = [folder, *(place for place in folder.glob("*") if place.is_dir())]  # several, where layers are compared
    kept = any((place / name).is_file() for place in fits for name in (MASK_FILE, FOUND_FILE))
    return kept or any(last_checkpoint(place) for its in fits for place in (its, its / FIRST))


def run_identity(config: TrainConfig) -> str:
    """Equal for two runs that would give the same package: an interrupted run goes on only as itself.

    It covers the settings and the contents of data files and tables, so one that changed meanwhile begins another run.
    """
    fields = [field.name for field in dataclasses.fields(config) if field.name not in BESIDE]
    settings = {name: getattr(config, name) for name in fields}
    contents = {}
    for name in SPLITS:
        digest = None if settings[name] is None else source_digest(settings[name])
        if digest is not None:
            settings[name] = source_name(settings[name], digest)
            contents[settings[name]] = digest
    return sha256_bytes(canonical_json({"settings": settings, "contents": contents}))


def _recorded(record: Path) -> str | None:
    try:
        return str(strict_json(record.read_bytes(), RUN_FILE)["identity"])
    except (FormatError, KeyError, TypeError):
        return None


def _manifest(config: TrainConfig, fitted: Fitted) -> Manifest:
    backbone, delta = fitted.task_model.backbone, fitted.delta
    record = None
    if delta is not None and delta.nnz:
        record = delta_record(config.method, delta, backbone.arena.numel, backbone.digest_of, layer_list(backbone))
    return Manifest(
        format_version=FORMAT_VERSION,
        name=config.name,
        version=config.version,
        task=fitted.data.task,
        backbone=backbone_ref(backbone),
        delta=record,
        files={},
        training={**fitted.training, CONFIGURATION: dict(backbone.configuration)},
        metrics=fitted.metrics,
        license=config.license,
    )
