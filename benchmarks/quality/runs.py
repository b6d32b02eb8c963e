"""The runs of `benchmarks.quality`: every method on every task with every seed, one line of results a run.

A run whose line is there is not run again: an interrupted benchmark goes on.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock

from benchmarks.quality.setup import BACKBONE, DENSITY, METHODS, PLANS, TASKS, Entry, Plan, Task

RESULTS = Path(__file__).parents[1] / "results" / "quality.jsonl"
FIRST_SEED = 1
VERSIONS = ("torch", "transformers", "peft", "scikit-learn")


@dataclass(frozen=True)
class Cell:
    """A method on a task: its trials and its seeds run one after another, since the trials choose the learning rate."""

    plan: Plan
    task: Task
    entry: Entry
    seeds: int
    data: Path
    results: Path
    device: str


def run_all(arguments: argparse.Namespace) -> None:
    """Every cell that is wanted; finished runs are left as they are."""
    plan = PLANS[arguments.plan]
    tasks = arguments.tasks or plan.tasks
    methods = arguments.methods or list(METHODS)
    where = (arguments.seeds, arguments.data, arguments.results, arguments.device)
    cells = [Cell(plan, TASKS[task], METHODS[method], *where) for task in tasks for method in methods]
    if arguments.workers == 1:
        for cell in cells:
            run_cell(cell)
        return
    # several processes, each doing many runs: one start of torch, of the device and of the data a process
    with get_context("spawn").Pool(arguments.workers) as pool:
        for _ in pool.imap_unordered(run_cell, cells):
            pass


def run_cell(cell: Cell) -> None:
    """Trials on the first seed, then the other seeds with the learning rate that was best on the dev split."""
    done = {key_of(line): line for line in lines(cell.results)}
    trials = [_run_once(cell, done, FIRST_SEED, rate) for rate in grid_of(cell)]
    best = best_trial(trials)["learning_rate"]
    for seed in range(FIRST_SEED + 1, FIRST_SEED + cell.seeds):
        _run_once(cell, done, seed, best)


def grid_of(cell: Cell) -> Sequence[float]:
    """The head alone has nothing that the grid's learning rate would move: one trial says it all."""
    return cell.plan.grid[:1] if cell.entry.settings.get("density", DENSITY) == 0 else cell.plan.grid


def best_trial(trials: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """By the dev metric, then by the dev loss: small dev splits have many ties."""
    return max(trials, key=lambda line: (line["dev"], -line["dev_loss"]))


Key = tuple[str, str, str, int, float]


def key_of(line: Mapping[str, Any]) -> Key:
    return line["plan"], line["task"], line["method"], line["seed"], line["learning_rate"]


def lines(results: Path) -> Iterator[dict[str, Any]]:
    """The lines of the results file; a last line that a killed process left half is no line."""
    if results.is_file():
        for text in results.read_text(encoding="utf-8").rstrip("\n").split("\n"):
            try:
                yield json.loads(text)
            except json.JSONDecodeError:
                continue


def _run_once(cell: Cell, done: Mapping[Key, dict[str, Any]], seed: int, rate: float) -> dict[str, Any]:
    key: Key = (cell.plan.name, cell.task.name, cell.entry.name, seed, rate)
    if key in done:
        return done[key]
    start, folder = time.monotonic(), Path(tempfile.mkdtemp(prefix="quality-"))
    restart_peak(cell.device)
    try:
        line = _measured(cell, seed, rate, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    line |= {"seconds": round(time.monotonic() - start, 1), "peak_mib": round(peak_mib(cell.device))}
    append_line(cell.results, line | surroundings(cell.device))
    print(f"{key}: dev {line['dev']:.4f} test {line['test']:.4f}, {line['seconds']:.0f} s", flush=True)
    return line


def _measured(cell: Cell, seed: int, rate: float, folder: Path) -> dict[str, Any]:
    from sparsehub.training import TrainConfig, fit

    settings = settings_of(cell, seed, rate, folder)
    fitted = fit(TrainConfig(**settings), folder / "run")
    uncut = fitted.training.get("before_packaging", {}).get("metrics") if cell.entry.whole else None
    judged, losses = (uncut, fitted.uncut_losses) if uncut else (fitted.metrics, fitted.losses)
    line: dict[str, Any] = {
        "plan": cell.plan.name,
        "grid": list(grid_of(cell)),
        "task": cell.task.name,
        "method": cell.entry.name,
        "seed": seed,
        "learning_rate": rate,
        "dev": judged["validation"][cell.task.decides],
        "dev_loss": round(losses["validation"], 6),
        "test": round(cell.task.score(judged["test"]), 6),
        "majority": round(cell.task.score(fitted.metrics["test (majority)"]), 6),
        "metrics": judged,
        "nnz": fitted.delta.nnz if fitted.delta else 0,
        "bytes": stored_bytes(fitted),
        "training": {k: fitted.training[k] for k in ("steps", "seconds")},
        "settings": {k: v for k, v in settings.items() if k not in ("out", "train", "validation", "test", "backbone")},
    }
    if uncut:
        line["cut"] = round(cell.task.score(fitted.metrics["test"]), 6)
        line["kept"] = fitted.training["before_packaging"]["share_of_squared_norm_kept"]
    return line


def settings_of(cell: Cell, seed: int, rate: float, folder: Path) -> dict[str, Any]:
    """What `sparsehub train` would be told; paths are left out of the results."""
    plan, task = cell.plan, cell.task
    return {
        "backbone": BACKBONE,
        "kind": task.kind,
        "name": task.name,
        "text": task.text,
        "choices": task.choices,
        "train": str(training_rows(cell, folder)),
        "validation": str(cell.data / task.name / "dev.jsonl"),
        "test": str(cell.data / task.name / "test.jsonl"),
        "out": str(folder / "out"),
        "density": DENSITY,
        "calibration_batches": plan.calibration_batches,
        "epochs": plan.epochs[task.name],
        "batch_size": plan.batch_size,
        "learning_rate": rate,
        "head_learning_rate": plan.head_learning_rate,
        "warmup": plan.warmup,
        "max_length": plan.max_length[task.name],
        "metric": task.decides,
        "precision": plan.precision,
        "preload": True,
        "device": cell.device,
        "seed": seed,
        **cell.entry.settings,
    }


def training_rows(cell: Cell, folder: Path) -> Path:
    """The training file, or a new one with the first rows of a seeded shuffle; the same rows for every run."""
    whole, limit = cell.data / cell.task.name / "train.jsonl", cell.plan.rows.get(cell.task.name, 0)
    if not limit:
        return whole
    rows = whole.read_text(encoding="utf-8").rstrip("\n").split("\n")
    random.Random(0).shuffle(rows)
    (folder / "train.jsonl").write_text("\n".join(rows[:limit]) + "\n", encoding="utf-8")
    return folder / "train.jsonl"


def stored_bytes(fitted: Any) -> int:
    """What has to be stored for the task beside its head: the delta's file, or 16 bits a value of what has no delta."""
    from sparsehub.delta import delta_bytes
    from sparsehub.tensorfile import load_tensors

    if fitted.aside is not None:
        name = next(p for p in fitted.aside.iterdir() if p.name.startswith("adapter") and p.suffix == ".safetensors")
        return 2 * sum(tensor.numel() for tensor in load_tensors(name).values())
    return len(delta_bytes(fitted.delta)) if fitted.delta is not None and fitted.delta.nnz else 0


def restart_peak(device: str) -> None:
    if device == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def peak_mib(device: str) -> float:
    """The process's highest resident memory since `restart_peak`; on a GPU what torch has allocated there."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM:"))


def surroundings(device: str) -> dict[str, Any]:
    import torch

    described = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    return {
        "device": f"{described}, {torch.get_num_threads()} thread{'s' if torch.get_num_threads() > 1 else ''}",
        "versions": {name: importlib.metadata.version(name) for name in VERSIONS},
        "commit": os.environ.get("QUALITY_COMMIT") or commit(),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def commit() -> str:
    """Of the code that ran, where it is a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def append_line(results: Path, line: Mapping[str, Any]) -> None:
    """One whole line, whatever other processes append, and after whatever a killed one left half."""
    results.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(results.parent / f".{results.name}.lock"), results.open("a+b") as file:
        file.write(after_half_a_line(file) + json.dumps(line, ensure_ascii=False).encode() + b"\n")


def after_half_a_line(file: BinaryIO) -> bytes:
    """What a new line has to begin with: a line feed where the last line has none."""
    if not file.seek(0, os.SEEK_END):
        return b""
    file.seek(-1, os.SEEK_END)
    return b"" if file.read(1) == b"\n" else b"\n"
