"""A few labelled rows a class, SetFit's own ground: its scores beside ours and the probe's.

    python -m benchmarks.quality.few_shot run --data FOLDER --shots 8 --seeds 0 1 2    # needs the extra `bench`
    python -m benchmarks.quality.few_shot render

FOLDER is that of `benchmarks.quality`. All start from the same backbone and see the same rows, which each seed draws
anew, with every setting at its default; no rows choose an epoch. All test rows are judged. A run whose line is there
is not run again. SetFit trains on pairs of rows, whose number grows with its square.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.quality.runs import append_line, lines, surroundings
from benchmarks.quality.setup import BACKBONE
from benchmarks.quality.untuned import splits_of
from sparsehub.backbone import open_checkpoint

RESULTS = Path(__file__).parents[1] / "results" / "few_shot.jsonl"
TASKS = ("sst2", "subj", "trec")
OURS, PROBE, SETFIT = "sam", "probe", "setfit"
Row = Mapping[str, Any]


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality.few_shot",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("verb", choices=("run", "render"))
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--methods", nargs="+", choices=(OURS, SETFIT), default=[OURS, SETFIT])
    parser.add_argument("--shots", nargs="+", type=int, default=[8], help="training rows of each class")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    return parser.parse_args(arguments)


def run_all(arguments: argparse.Namespace) -> None:
    """Every run that is wanted and has no line yet."""
    done = {(line["task"], line["method"], line["shots"], line["seed"]) for line in lines(arguments.results)}
    for seed in arguments.seeds:
        for shots in arguments.shots:
            for task in arguments.tasks:
                splits = splits_of(task, arguments.data)
                train, test = drawn(rows_of(splits["train"]), shots, seed), rows_of(splits["test"])
                for method in arguments.methods:
                    if (task, method, shots, seed) not in done:
                        start = time.monotonic()
                        scores = (ours if method == OURS else setfit)(task, train, test, seed)
                        line = {"task": task, "method": method, "shots": shots, "seed": seed, **scores}
                        line |= {"seconds": round(time.monotonic() - start, 1), "test_rows": len(test)}
                        append_line(arguments.results, line | surroundings("cpu"))
                        print(line, flush=True)


def rows_of(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").rstrip("\n").split("\n")]


def drawn(rows: Sequence[Row], shots: int, seed: int) -> list[Row]:
    """So many rows of each class, by a seed."""
    shuffled = list(rows)
    random.Random(seed).shuffle(shuffled)
    classes = sorted({str(row["label"]) for row in rows})
    return [row for name in classes for row in [row for row in shuffled if str(row["label"]) == name][:shots]]


def ours(task: str, train: Sequence[Row], test: Sequence[Row], seed: int) -> dict[str, Any]:
    """Test accuracy of `sparsehub train` and of its probe."""
    from sparsehub.training import TrainConfig, fit

    with tempfile.TemporaryDirectory(prefix="few-shot-") as folder:
        config = TrainConfig(
            backbone=BACKBONE,
            kind="text-classification",
            name=task,
            train=list(train),
            test=list(test),
            text="text",
            out=str(Path(folder) / "out"),
            device="cpu",
            seed=seed,
        )
        fitted = fit(config, Path(folder))
    probe = fitted.training["baselines"]["test"]["probe"]
    return {"test": round(fitted.metrics["test"]["accuracy"], 6), "probe": round(probe["accuracy"], 6)}


def setfit(task: str, train: Sequence[Row], test: Sequence[Row], seed: int) -> dict[str, Any]:  # noqa: ARG001
    """Test accuracy of SetFit: the whole encoder on pairs of the rows, then a logistic regression."""
    from datasets import Dataset
    from setfit import SetFitModel, Trainer, TrainingArguments

    model = SetFitModel.from_pretrained(str(open_checkpoint(BACKBONE).folder))
    given = Dataset.from_dict({"text": [row["text"] for row in train], "label": [str(row["label"]) for row in train]})
    with tempfile.TemporaryDirectory(prefix="few-shot-") as folder:
        settings = TrainingArguments(
            output_dir=folder, seed=seed, report_to="none", save_strategy="no", show_progress_bar=False
        )
        Trainer(model=model, args=settings, train_dataset=given).train()
        answers = model.predict([row["text"] for row in test], batch_size=32)
    right = [str(answer) == str(row["label"]) for answer, row in zip(answers, test, strict=True)]
    return {"test": round(statistics.mean(right), 6)}


def table(found: Sequence[Row]) -> list[str]:
    """A row for each task and number of rows a class."""
    cases = sorted({(line["task"], line["shots"]) for line in found}, key=lambda case: (TASKS.index(case[0]), case[1]))
    rows = ["| task | rows a class | test rows | probe | SetFit | sam |", "|---|---:|---:|---:|---:|---:|"]
    for task, shots in cases:
        its = [line for line in found if (line["task"], line["shots"]) == (task, shots)]
        scores = {method: [line["test"] for line in its if line["method"] == method] for method in (SETFIT, OURS)}
        probes = [line["probe"] for line in its if "probe" in line]
        cells = [_cell(scores_of) for scores_of in (probes, scores[SETFIT], scores[OURS])]
        rows.append(f"| {task} | {shots} | {its[0]['test_rows']:,} | {' | '.join(cells)} |")
    return rows


def _cell(scores: Sequence[float]) -> str:
    if not scores:
        return "not run"
    spread = f" ± {statistics.stdev(scores):.3f}" if len(scores) > 1 else ""
    return f"{statistics.mean(scores):.3f}{spread} ({len(scores)})"


def report(found: Sequence[Row]) -> str:
    """The page of the results."""
    versions = sorted({json.dumps(line["versions"], sort_keys=True) for line in found})
    seconds = {m: [line["seconds"] for line in found if line["method"] == m] for m in (OURS, SETFIT)}
    took = ", ".join(f"{name} {statistics.median(its):.0f} s" for name, its in seconds.items() if its)
    return "\n".join(
        [
            "# A few rows a class",
            "",
            *table(found),
            "",
            "- test accuracy, mean ± deviation over seeds (runs); each seed draws other rows. all-MiniLM-L6-v2,",
            "  every setting at its default, no validation rows. The probe is a logistic regression on frozen vectors.",
            f"- a run took at the median, judging included, on a busy machine: {took}; {found[0]['device']}.",
            f"- {'; '.join(versions)}.",
            "",
        ]
    )


def main() -> None:
    arguments = parse(sys.argv[1:])
    if arguments.verb == "run":
        run_all(arguments)
    found = list(lines(arguments.results))
    if found:
        arguments.results.with_suffix(".md").write_text(report(found), encoding="utf-8")


if __name__ == "__main__":
    main()
