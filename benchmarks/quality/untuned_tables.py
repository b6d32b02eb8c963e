"""The tables of `benchmarks.quality.untuned`, from the lines of its results file and nothing else."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.quality.setup import BACKBONE

Line = Mapping[str, Any]
PROBE, OURS = "probe", "sam"
NOT_RUN = "not run"
LARGE = 500  # test rows from which half a point is no luck
ALLOWED = 0.005


def write_tables(lines: Sequence[Line], path: Path) -> None:
    """Write the table beside the results."""
    path.write_text("\n".join(["# What nobody tuned", "", *report(lines)]) + "\n", encoding="utf-8")


def report(lines: Sequence[Line]) -> list[str]:
    """Test scores of all that was run: a table for each backbone, number of training rows and settings."""
    judged = [line for line in lines if line["test"] is not None]
    if not judged:
        return ["Nothing was run."]
    found = []
    for title in dict.fromkeys(map(_title, judged)):
        found += [f"## {title}", "", *_table([line for line in judged if _title(line) == title]), ""]
    return [*found, *_notes(judged)]


def _title(line: Line) -> str:
    settings = ", ".join(f"{name} {value}" for name, value in line["settings"].items())
    return ", ".join([backbone_of(line), f"at most {line['rows']:,} training rows", *([settings] if settings else [])])


def backbone_of(line: Line) -> str:
    """The name of the backbone; lines say it where it is another than the usual one."""
    return str(line.get("backbone", BACKBONE.rpartition("/")[2]))


def _table(lines: Sequence[Line]) -> list[str]:
    """Tasks by methods, averages over the tasks that each method shares with the probe, and which lose to it."""
    tasks = list(dict.fromkeys(line["task"] for line in lines))
    methods = [OURS, *sorted({line["method"] for line in lines} - {OURS})]
    head = ["task", "test rows", PROBE, *methods, f"{OURS} less {PROBE}"]
    rows = [_row(task, methods, lines) for task in tasks]
    return [
        "| " + " | ".join(head) + " |",
        "|---|" + "---:|" * (len(head) - 1),
        *("| " + " | ".join(row) + " |" for row in [*rows, _averages(tasks, methods, lines)]),
    ]


def scores_of(task: str, method: str, lines: Sequence[Line]) -> list[float]:
    """Test scores, one a seed; the probe is the same for every seed and method."""
    found = [line for line in lines if line["task"] == task]
    if method == PROBE:
        return [line["probe"] for line in found][:1]
    return [line["test"] for line in found if line["method"] == method]


def is_lost(score: float, probe: float, rows: int) -> bool:
    """Whether a score is below the probe's by more than .005, of fewer than 500 test rows by more than one standard
    error of an accuracy."""
    slack = ALLOWED if rows >= LARGE else math.sqrt(max(probe * (1 - probe), 0.0) / rows)
    return score < probe - slack


def _row(task: str, methods: Sequence[str], lines: Sequence[Line]) -> list[str]:
    rows = next(line["test_rows"] for line in lines if line["task"] == task)
    probe, ours = (scores_of(task, method, lines) for method in (PROBE, OURS))
    apart = f"{statistics.mean(ours) - probe[0]:+.3f}" if ours else NOT_RUN
    lost = " (loses)" if ours and is_lost(statistics.mean(ours), probe[0], rows) else ""
    cells = [_cell(scores_of(task, method, lines)) for method in methods]
    return [task, f"{rows:,}", f"{probe[0]:.3f}", *cells, apart + lost]


def _cell(scores: Sequence[float]) -> str:
    if not scores:
        return NOT_RUN
    spread = f" ± {statistics.stdev(scores):.3f}" if len(scores) > 1 else ""
    return f"{statistics.mean(scores):.3f}{spread} ({len(scores)})"


def _averages(tasks: Sequence[str], methods: Sequence[str], lines: Sequence[Line]) -> list[str]:
    """Over the tasks that every method of the table was run on; without such tasks there is no average."""
    whole = [task for task in tasks if all(scores_of(task, method, lines) for method in methods)]
    if not whole:
        return [f"average of the {len(whole)} that all were run on", *["-"] * (len(methods) + 3)]
    means = {
        method: statistics.mean(statistics.mean(scores_of(task, method, lines)) for task in whole)
        for method in (PROBE, *methods)
    }
    cells = [f"{means[method]:.3f}" for method in (PROBE, *methods)]
    return [f"average of the {len(whole)} that all were run on", "", *cells, f"{means[OURS] - means[PROBE]:+.3f}"]


def _notes(lines: Sequence[Line]) -> list[str]:
    versions = sorted({json.dumps(line["versions"], sort_keys=True) for line in lines})
    commits = ", ".join(sorted({line["commit"] for line in lines}))
    return [
        "- mean ± deviation of the test score (seeds): accuracy; of CoLA Matthews, of STS-B the mean of Pearson and",
        "  Spearman, of MRPC and CB the mean of accuracy and F1, of urgency Pearson.",
        "- every setting that a title does not name is the default; half as many validation rows as training rows.",
        "  Every method has the same linear head, fitted first. `full` and `lora` are judged as they were trained.",
        "- loses: below the probe by more than .005, of fewer than 500 test rows by more than one standard error.",
        f"- {len(lines)} runs on {lines[0]['device']}, commits {commits}; {'; '.join(versions)}.",
    ]
