"""How stable a way of training is: what happens to it when a few training rows, or the seed, are others.

Source: Fu et al., AAAI 2023: pointwise hypothesis stability (Theorem 1), Table 2 and Figure 5. Theorem 1 bounds the
expected change of the loss on a row that was left out by 2 rho^2 / ((L + 2 (1 - p)) n): rho the loss's Lipschitz
constant, L the Hessian's least singular value, p the density, n the training rows. Here rho is the largest norm that
the gradient of a training row has at the solution, over the entries that were trained, and L is taken as 0.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sparsehub.errors import UsageError
from sparsehub.files import write_file
from sparsehub.selection.depth import margin_of
from sparsehub.training.config import TrainConfig
from sparsehub.training.data import Split, TaskData, load_data
from sparsehub.training.fitting import Fitted, fit
from sparsehub.training.job import Report
from sparsehub.training.losses import lipschitz, row_losses, trained
from sparsehub.training.method import method_named
from sparsehub.training.metrics import best_metric
from sparsehub.training.run import run_identity
from sparsehub.training.stability_plan import Plan

RUNS_FILE = "runs.jsonl"
LIPSCHITZ_ROWS = 64  # rows whose gradients give rho
WHOLE, LEFT_OUT, SEED, ONE_OUT = "whole", "left-out", "seed", "one-out"


@dataclass(frozen=True)
class Stability:
    """What a stability measurement found at one density."""

    density: float  # share of the backbone's entries that were trained
    trained: int  # values beside the head
    score: float  # of the test split, trained on all rows
    scores: tuple[float, ...]  # the same, of the refits without some rows
    seed_scores: tuple[float, ...]  # the same, of the refits with other seeds
    removed: float | None  # mean change of the loss on the rows that a refit left out
    one_out: float | None  # the same, of the refits without a single row
    gap: float  # mean of test loss - training loss
    rho: float  # largest gradient norm of a row, of Theorem 1
    bound: float | None  # Theorem 1; None at a density of 1, where it says nothing

    @property
    def spread(self) -> float:
        """Standard deviation of the test score when rows are left out."""
        return statistics.stdev(self.scores) if len(self.scores) > 1 else 0.0

    @property
    def seed_spread(self) -> float:
        """Standard deviation of the test score over the seeds, the first one included."""
        return statistics.stdev(self.seed_scores) if len(self.seed_scores) > 1 else 0.0


def measure_stability(
    config: TrainConfig, plan: Plan, folder: Path, *, report: Report = lambda _: None
) -> list[Stability]:
    """Refit and compare, density by density. A finished refit is a line of `folder`'s runs.jsonl and is not repeated.

    Raises `UsageError` where there is no split to test on, or where the method changes no weights.
    """
    if not method_named(config.method).packages:
        raise UsageError(f"{config.method} changes no weights, and the theory is about weights")
    if margin_of(config.layers) is not None:
        raise UsageError("stability is that of one set of layers", found=config.layers, expected="last:2, or all")
    config = dataclasses.replace(config, report_to=None)  # a tracker follows a run, and here are dozens
    notes: list[str] = []
    data = load_data(config, notes.append)
    if data.test is None and data.validation is None:
        raise UsageError("stability is measured on rows that were not trained on", fix="give test or validation")
    settings = [dataclasses.replace(config, density=density, nnz=None) for density in plan.densities] or [config]
    refits = [list(_refits(setting, plan, len(data.train.rows))) for setting in settings]
    done = {line["identity"]: line for line in _lines(folder)}
    every = [refit for density in refits for refit in density]
    for note in notes if any(refit.identity not in done for refit in every) else ():
        report(note)
    for count, refit in enumerate(every, 1):
        if refit.identity not in done:
            report(f"refit {count} of {len(every)}: {refit.kind} {refit.index}")
            done[refit.identity] = _run(refit, data, folder, report)
            _append(folder, done[refit.identity])
    return [_summary([done[refit.identity] for refit in density], len(data.train.rows)) for density in refits]


@dataclass(frozen=True)
class _Refit:
    """One training, without some rows."""

    kind: str
    index: int
    config: TrainConfig
    without: tuple[int, ...]

    @property
    def identity(self) -> str:
        return f"{self.kind} {self.index} {run_identity(self.config)} {','.join(map(str, self.without))}"


def _refits(config: TrainConfig, plan: Plan, rows: int) -> Iterator[_Refit]:
    yield _Refit(WHOLE, 0, config, ())
    generator = torch.Generator().manual_seed(config.seed)
    for index in range(plan.refits):
        without = torch.randperm(rows, generator=generator)[: max(1, round(plan.left_out * rows))].tolist()
        yield _Refit(LEFT_OUT, index, config, tuple(sorted(without)))
    for index in range(plan.seeds):
        yield _Refit(SEED, index, dataclasses.replace(config, seed=config.seed + 1 + index), ())
    for index, row in enumerate(torch.randperm(rows, generator=generator)[: plan.one_out].tolist()):
        yield _Refit(ONE_OUT, index, config, (row,))


def _run(refit: _Refit, data: TaskData, folder: Path, report: Report) -> dict[str, Any]:
    without = set(refit.without)
    left = [i for i in range(len(data.train.rows)) if i not in without]
    run = folder / "run"
    shutil.rmtree(run, ignore_errors=True)
    fitted = fit(refit.config, run, data=dataclasses.replace(data, train=_rows(data.train, left)), report=report)
    shutil.rmtree(run, ignore_errors=True)
    name = "test" if data.test is not None else "validation"
    return {
        "identity": refit.identity,
        "kind": refit.kind,
        "score": fitted.metrics[name][best_metric(data.task, refit.config.metric)],
        "test_loss": fitted.losses[name],
        "trained": fitted.training["trained"],
        "entries": fitted.task_model.backbone.arena.numel,
        **_losses(fitted, data.train, left, refit),
    }


def _losses(fitted: Fitted, train: Split, left: Sequence[int], refit: _Refit) -> dict[str, Any]:
    """Losses on the rows that were left out (on all, where none was), the mean over the others, and rho."""
    looked = refit.without or tuple(left)
    with trained(fitted):
        losses = row_losses(fitted, _rows(train, looked))
        others = row_losses(fitted, _rows(train, left)) if refit.without else losses
        rho = lipschitz(fitted, _rows(train, left[:LIPSCHITZ_ROWS])) if refit.kind == WHOLE else 0.0
    found = {str(row): round(float(loss), 7) for row, loss in zip(looked, losses, strict=True)}
    return {"losses": found if refit.kind != SEED else {}, "train_loss": float(others.mean()), "rho": rho}


def _rows(split: Split, places: Sequence[int]) -> Split:
    return Split(split.source, [split.rows[i] for i in places], [split.targets[i] for i in places])


def _summary(runs: Sequence[Mapping[str, Any]], rows: int) -> Stability:
    whole = runs[0]
    density = whole["trained"] / whole["entries"]
    return Stability(
        density=density,
        trained=whole["trained"],
        score=whole["score"],
        scores=tuple(run["score"] for run in runs if run["kind"] == LEFT_OUT),
        seed_scores=tuple(run["score"] for run in runs if run["kind"] in (WHOLE, SEED)),
        removed=_change(whole, [run for run in runs if run["kind"] == LEFT_OUT]),
        one_out=_change(whole, [run for run in runs if run["kind"] == ONE_OUT]),
        gap=statistics.mean(run["test_loss"] - run["train_loss"] for run in runs),
        rho=whole["rho"],
        bound=theorem_1(whole["rho"], density, rows),
    )


def _change(whole: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> float | None:
    """Mean |loss without the row - loss with it|, over the rows that were left out of each run."""
    changes = [abs(loss - whole["losses"][row]) for run in runs for row, loss in run["losses"].items()]
    return statistics.mean(changes) if changes else None


def theorem_1(rho: float, density: float, rows: int) -> float | None:
    """rho^2 / ((1 - p) n); None at density 1."""
    return rho**2 / ((1 - density) * rows) if density < 1 else None


def _lines(folder: Path) -> Iterator[dict[str, Any]]:
    path = folder / RUNS_FILE
    for text in path.read_text(encoding="utf-8").split("\n") if path.is_file() else ():
        try:
            yield json.loads(text)
        except json.JSONDecodeError:
            continue  # the last line of a process that was killed


def _append(folder: Path, line: Mapping[str, Any]) -> None:
    """One more line, on a line of its own whatever a killed process left half."""
    path = folder / RUNS_FILE
    kept = path.read_text(encoding="utf-8") if path.is_file() else ""
    whole = kept if kept.endswith("\n") or not kept else kept + "\n"
    write_file(path, (whole + json.dumps(line) + "\n").encode())
