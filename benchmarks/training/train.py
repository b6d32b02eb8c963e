"""What a training step costs in time and memory: ours, full fine-tuning, PEFT LoRA and PEFT SHiRA.

Every case runs in processes of its own (`benchmarks.training.train_case`), in turn: none sees what another left.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import Report, Row, in_turn, write_report

CASES = {
    "full": "full fine-tuning",
    "full-returning": "full fine-tuning, freed memory returned",
    "random": "sparsehub, random mask",
    "sam": "sparsehub, sam mask",
    "lora": "PEFT LoRA r=8",
    "shira": "PEFT SHiRA r=3",
}
SELECTIONS = {"random": "sparsehub, selection by random", "sam": "sparsehub, selection by sam"}
RUNS = [*((name, 1) for name in CASES), ("full", 4), ("sam", 4)]  # a case, and passes a batch
REPEATS = 2
THREADS = 1
Run = tuple[str, int]
Found = dict[Run, list[dict[str, Any]]]


def main() -> None:
    found: Found = {run: [] for run in RUNS}
    with tempfile.TemporaryDirectory() as folder:
        run_case(("checkpoint", 1), folder)
        for run in in_turn(RUNS, REPEATS):
            found[run].append(run_case(run, folder))
        check = run_case(("check", 1), folder)
    rows = [Row(CASES[name], _setup(passes), step_figures(found, (name, passes))) for name, passes in RUNS]
    rows += [
        Row(SELECTIONS[name], _setup(passes), selection_figures(found, (name, passes)))
        for name, passes in RUNS
        if name in SELECTIONS
    ]
    started = max(result["started"] for results in found.values() for result in results)
    checks = [
        f"sparse steps against dense AdamW whose gradients are masked, {check['steps']} steps, {check['entries']:,} "
        f"entries: the values differ by {check['difference']:.1e} at most, the losses by {check['loss']:.1e}",
        f"no process inherits a peak: before it imports torch its own is {started:.0f} MiB at most",
    ]
    print(write_report(Report("train", "Training", rows, NOTES, checks), str(THREADS)))


NOTES = (
    "Medians over the processes of a case. Step: forward, backward, optimiser; for a selection: one calibration batch.",
    "Peak: the process's highest resident memory from the first step on, libraries and weights included; above "
    "libraries: less what was resident once torch and transformers were imported, the same for every case.",
    "Before: resident before the first step. Do not subtract it from the peak: a dense model's weights are read from "
    "their file on first use and are not in it, and what a selection freed may still be in it and is used again.",
    "`sparsehub train` has the allocator return large blocks as soon as they are freed. `full fine-tuning, freed "
    "memory returned` has that setting too, which nobody runs by default: it shows what the setting alone does.",
    "Whole: the highest resident memory from start to end, loading and selection included.",
    "sparsehub changes 0.5% of all entries of the backbone; SHiRA's r gives it the nearest number of entries.",
    "Activations (about 810 MiB in one pass) cost every method the same; in four passes a quarter of that.",
)


def _setup(passes: int) -> dict[str, Any]:
    return {
        "encoder": "12 x 768 with a classification head, float32",
        "batch": f"16 x 64 tokens in {passes} pass{'es' if passes > 1 else ''}",
        "processes a case": REPEATS,
    }


def run_case(run: Run, folder: str) -> dict[str, Any]:
    """What one fresh process has measured."""
    name, passes = run
    command = [sys.executable, "-m", "benchmarks.training.train_case", name, folder, str(THREADS), str(passes)]
    environment = {**os.environ, "SPARSEHUB_CACHE": folder, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(
        command, cwd=Path(__file__).parents[2], env=environment, check=True, stdout=subprocess.PIPE, text=True
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def step_figures(found: Found, run: Run) -> dict[str, Any]:
    figures = {key: _median(found[run], key) for key in ("step", "peak", "before", "whole")}
    return _columns(found, run, figures) | {"trained": int(_median(found[run], "trained"))}


def selection_figures(found: Found, run: Run) -> dict[str, Any]:
    results = [result["selection"] for result in found[run]]
    figures = {key: _median(results, key) for key in ("step", "peak", "before")}
    return _columns(found, run, figures) | {"selection s": _median(results, "seconds")}


def _columns(found: Found, run: Run, figures: Mapping[str, float]) -> dict[str, Any]:
    """The figures, and what share they are of full fine-tuning's in as many passes."""
    full = {key: _median(found["full", run[1]], key) for key in ("step", "peak", "before", "whole")}
    libraries = statistics.median(result["libraries"] for results in found.values() for result in results)
    columns: dict[str, Any] = {
        "step s": figures["step"],
        "of full's": figures["step"] / full["step"],
        "before MiB": figures["before"],
        "peak MiB": figures["peak"],
        "of full's peak": figures["peak"] / full["peak"],
        "above libraries MiB": figures["peak"] - libraries,
        "of full's above": (figures["peak"] - libraries) / (full["peak"] - libraries),
    }
    if "whole" in figures:
        columns |= {"whole MiB": figures["whole"], "of full's whole": figures["whole"] / full["whole"]}
    return columns


def _median(results: Sequence[Mapping[str, Any]], key: str) -> float:
    return float(statistics.median(result[key] for result in results))


if __name__ == "__main__":
    main()
