"""What `sparsehub train` gives somebody who tunes nothing: beside its probe, full fine-tuning and LoRA, by test scores.

    python -m benchmarks.quality.untuned run --data FOLDER --seeds 0 1 2 --methods sam full "lora, equal bytes"
    python -m benchmarks.quality.untuned run --data FOLDER --tasks trec --set epochs=10 --results search.jsonl
    python -m benchmarks.quality.untuned render

FOLDER is that of `benchmarks.quality`; the demo's own tasks are read from examples/. Every setting is the default, but
for `--set`, with which a search tries others. At most 1,000 training and 500 validation rows are read, all test rows. A
run whose line is there is not run again.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.quality.runs import append_line, lines, stored_bytes, surroundings
from benchmarks.quality.setup import BACKBONE, METHODS, TASKS, Task
from benchmarks.quality.untuned_tables import backbone_of, write_tables

RESULTS = Path(__file__).parents[1] / "results" / "untuned.jsonl"
SUPPORT = Path(__file__).parents[2] / "examples" / "support"
PUBLIC = ("trec", "subj", "sst2", "banking77", "cb", "rte", "mrpc", "cola", "stsb")
OURS = {
    task.name: task
    for task in (
        Task("topic", "text-classification", ("text",), "accuracy", lambda m: m["accuracy"]),
        Task("reply", "text-classification", ("text_a", "text_b"), "accuracy", lambda m: m["accuracy"]),
        Task("urgency", "regression", ("text",), "pearson", lambda m: m["pearson"], "pearson"),
    )
}
CHOSEN = {name: TASKS[name] for name in PUBLIC} | OURS
EQUAL_BYTES = "lora, equal bytes"
RANKS = {"all-mpnet-base-v2": 6}  # of a LoRA of no more bytes than `sam`, where it is not that of `METHODS`


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality.untuned",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("verb", choices=("run", "render"))
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--backbone", default=BACKBONE, help="another one, such as that of benchmarks.quality.fetch")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--tasks", nargs="+", choices=list(CHOSEN), default=list(CHOSEN))
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=["sam"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="other settings than the defaults")
    parser.add_argument("--rows", type=int, default=1000, help="training rows, at most; half as many for validation")
    parser.add_argument("--packages", type=Path, metavar="FOLDER", help="keep the packages of the runs in this folder")
    parser.add_argument("--no-test", action="store_true", help="leave the test rows alone: for a search")
    return parser.parse_args(arguments)


def run_all(arguments: argparse.Namespace) -> None:
    """Every run that is wanted and has no line yet: seed by seed, method by method, so that tables fill evenly."""
    settings = dict(setting.split("=", 1) for setting in arguments.set)
    settings = {name: _value(value) for name, value in settings.items()}
    done, name = {key_of(line) for line in lines(arguments.results)}, Path(arguments.backbone).name
    for seed in arguments.seeds:
        for method in arguments.methods:
            for task in arguments.tasks:
                if (name, task, method, seed, arguments.rows, json.dumps(settings, sort_keys=True)) not in done:
                    run_once(CHOSEN[task], method, seed, settings, arguments)


def _value(text: str) -> Any:
    """A setting's value as JSON; what is no JSON is a text, such as last:1."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def key_of(line: Mapping[str, Any]) -> tuple[str, str, str, int, int, str]:
    settings = json.dumps(line["settings"], sort_keys=True)
    return backbone_of(line), line["task"], line["method"], line["seed"], line["rows"], settings


def run_once(task: Task, method: str, seed: int, settings: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Train, judge, add the line, and keep the package where that is wanted."""
    from sparsehub.training import TrainConfig, fit
    from sparsehub.training.run import write_fitted

    start, folder = time.monotonic(), Path(tempfile.mkdtemp(prefix="untuned-"))
    try:
        config = TrainConfig(**(config_of(task, method, seed, arguments, folder) | settings))
        fitted = fit(config, folder / "run")
        line = line_of(task, method, fitted)
        if arguments.packages:
            write_fitted(
                arguments.packages / f"{task.name}-{method}-{seed}".replace(", ", "-").replace(" ", "-"), config, fitted
            )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if arguments.backbone != BACKBONE:
        line["backbone"] = Path(arguments.backbone).name
    line |= {"seed": seed, "rows": arguments.rows, "settings": settings, "seconds": round(time.monotonic() - start, 1)}
    append_line(arguments.results, line | surroundings("cpu"))
    print({name: line[name] for name in ("task", "method", "seed", "settings", "dev", "test", "seconds")}, flush=True)


def config_of(task: Task, method: str, seed: int, arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """What a user would say, and no more."""
    settings = {} if method == "sam" else METHODS[method].settings
    if method == EQUAL_BYTES and (rank := RANKS.get(Path(arguments.backbone).name)):
        settings = {**settings, "options": {"rank": rank, "alpha": 2.0 * rank}}
    most = {"train": arguments.rows, "validation": arguments.rows // 2}
    splits = splits_of(task.name, arguments.data)
    given = {split: str(first_rows(path, most.get(split), folder / path.name)) for split, path in splits.items()}
    if arguments.no_test:
        del given["test"]
    return {
        "backbone": arguments.backbone,
        "kind": task.kind,
        "name": task.name,
        "text": task.text,
        "out": str(folder / "out"),
        "seed": seed,
        "device": "cpu",
        **given,
        **settings,
    }


def splits_of(name: str, data: Path) -> dict[str, Path]:
    """The files of a task's splits."""
    folder, validation = (SUPPORT, "validation") if name in OURS else (data, "dev")
    names = {"train": "train", "validation": validation, "test": "test"}
    return {split: folder / name / f"{file}.jsonl" for split, file in names.items()}


def first_rows(path: Path, most: int | None, other: Path) -> Path:
    """The file, or `other`, a new one with the first rows of a seeded shuffle: the same rows for every run. A text may
    hold what `str.splitlines` takes for the end of a line."""
    rows = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
    if most is None or len(rows) <= most:
        return path
    random.Random(0).shuffle(rows)
    other.write_text("\n".join(rows[:most]) + "\n", encoding="utf-8")
    return other


def line_of(task: Task, method: str, fitted: Any) -> dict[str, Any]:
    """What is kept of a run: its scores and the probe's. What is cut to a budget is judged as it was trained."""
    uncut = fitted.training.get("before_packaging", {}).get("metrics") if METHODS[method].whole else None
    judged, losses = (uncut, fitted.uncut_losses) if uncut else (fitted.metrics, fitted.losses)
    probes = {split: row.get("probe") for split, row in fitted.training["baselines"].items()}
    scored = "test" in judged
    return {
        "task": task.name,
        "method": method,
        "dev": round(task.score(judged["validation"]), 6),
        "dev_loss": round(losses["validation"], 6),
        "dev_probe": round(task.score(probes["validation"]), 6),
        "test": round(task.score(judged["test"]), 6) if scored else None,
        "probe": round(task.score(probes["test"]), 6) if scored else None,
        "test_rows": len(fitted.data.test.rows) if scored else 0,
        "nnz": fitted.delta.nnz if fitted.delta else 0,
        "bytes": stored_bytes(fitted),
        "training": {k: fitted.training.get(k) for k in ("steps", "seconds", "selection", "chosen")},
    }


def main() -> None:
    arguments = parse(sys.argv[1:])
    if arguments.verb == "run":
        run_all(arguments)
    else:
        write_tables(list(lines(arguments.results)), arguments.results.with_suffix(".md"))


if __name__ == "__main__":
    main()
