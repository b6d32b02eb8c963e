"""What a training step costs in time and memory: ours, full fine-tuning, PEFT LoRA and PEFT SHiRA.

Every case runs in processes of its own (`benchmarks.train_case`), in turn, so that no case sees what another left.
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
    "random": "sparsehub, random mask",
    "sam": "sparsehub, sam mask",
    "lora": "PEFT LoRA r=8",
    "shira": "PEFT SHiRA r=3",
}
SELECTIONS = {"random": "sparsehub, selection by random", "sam": "sparsehub, selection by sam"}
REPEATS = 2
THREADS = 1
Found = dict[str, list[dict[str, Any]]]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        run_case("checkpoint", folder)
        found: Found = {name: [] for name in CASES}
        for name in in_turn(list(CASES), REPEATS):
            found[name].append(run_case(name, folder))
        check = run_case("check", folder)
    rows = [Row(label, SETUP, step_figures(found, name)) for name, label in CASES.items()]
    rows += [Row(label, SETUP, selection_figures(found, name)) for name, label in SELECTIONS.items()]
    started = max(result["started"] for results in found.values() for result in results)
    checks = [
        f"sparse steps against dense AdamW whose gradients are masked, {check['steps']} steps, {check['entries']:,} "
        f"entries: the values differ by {check['difference']:.1e} at most, the losses by {check['loss']:.1e}",
        f"no process inherits a peak: before it imports torch its own is {started:.0f} MiB at most",
    ]
    print(write_report(Report("train", "Training", rows, NOTES, checks), str(THREADS)))


SETUP = {
    "encoder": "12 x 768 with a classification head",
    "batch": "16 x 64 tokens",
    "dtype": "float32",
    "dropout": 0.1,
    "processes a case": REPEATS,
}
NOTES = (
    "Medians over the processes of a case. Step: forward, backward, optimiser, for a selection: one calibration batch.",
    "Peak: the process's highest resident memory from the first step on, libraries (about 400 MiB) and weights "
    "included; growth: the peak less what was resident before the first step.",
    "Whole: the highest resident memory from start to end, loading and selection included.",
    "sparsehub changes 0.5% of all entries of the backbone; SHiRA's r gives it the nearest number of entries.",
)


def run_case(name: str, folder: str) -> dict[str, Any]:
    """What one fresh process has measured."""
    command = [sys.executable, "-m", "benchmarks.train_case", name, folder, str(THREADS)]
    environment = {**os.environ, "SPARSEHUB_CACHE": folder, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(
        command, cwd=Path(__file__).parents[1], env=environment, check=True, stdout=subprocess.PIPE, text=True
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def step_figures(found: Found, name: str) -> dict[str, Any]:
    figures = {key: _median(found[name], key) for key in ("step", "peak", "before", "whole")}
    return _columns(found, figures) | {"trained": int(_median(found[name], "trained"))}


def selection_figures(found: Found, name: str) -> dict[str, Any]:
    results = [result["selection"] for result in found[name]]
    return _columns(found, {key: _median(results, key) for key in ("step", "peak", "before")}) | {
        "selection s": _median(results, "seconds")
    }


def _columns(found: Found, figures: Mapping[str, float]) -> dict[str, Any]:
    full = {key: _median(found["full"], key) for key in ("step", "peak", "before", "whole")}
    growth, full_growth = figures["peak"] - figures["before"], full["peak"] - full["before"]
    columns: dict[str, Any] = {
        "step s": figures["step"],
        "of full's": figures["step"] / full["step"],
        "peak MiB": figures["peak"],
        "of full's peak": figures["peak"] / full["peak"],
        "growth MiB": growth,
        "of full's growth": growth / full_growth,
    }
    if "whole" in figures:
        columns |= {"whole MiB": figures["whole"], "of full's whole": figures["whole"] / full["whole"]}
    return columns


def _median(results: Sequence[Mapping[str, Any]], key: str) -> float:
    return statistics.median(result[key] for result in results)


if __name__ == "__main__":
    main()
