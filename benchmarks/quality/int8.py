"""What int8 weights cost: the scores of packages on their test rows, served from float32 weights and from int8 ones.

python -m benchmarks.quality.int8                          # the packages that examples/support carries
python -m benchmarks.quality.int8 packages/trec=data/trec/test.jsonl packages/stsb=data/stsb/test.jsonl
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.harness import Report, Row, verdict, write_report
from benchmarks.packages import BACKBONE
from sparsehub import Engine, load_backbone
from sparsehub.package import Package, read_package
from sparsehub.training.data import Split, load_split
from sparsehub.training.metrics import compute

SUPPORT = Path(__file__).parents[2] / "examples" / "support"
CARRIED = [f"{SUPPORT}/packages/{name}={SUPPORT}/{name}/test.jsonl" for name in ("topic", "reply", "urgency")]
MOST = 0.005  # that a task's first metric may fall by
AT_ONCE = 256  # rows in the queue
NOTES = (
    f"{BACKBONE}; every row through an engine, whose Linear maps multiply by float32 or by int8 weights; deltas, "
    "norms, embeddings and heads are in float32 in both.",
    "The packages that examples/support carries have test sets of 80 to 96 rows, where one row is more than .01.",
)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality.int8",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("packages", nargs="*", default=CARRIED, metavar="PACKAGE=ROWS")
    return parser.parse_args(arguments)


def main() -> None:
    os.environ.setdefault("SPARSEHUB_COMPILE", "off")
    tasks = [task_of(*given.split("=", 1)) for given in parse(sys.argv[1:]).packages]
    rows: list[Row] = []
    for weights in ("float", "int8"):
        engine = Engine(load_backbone(BACKBONE), weights=weights, allow_quantised=True, check_seconds=0)
        rows += [row for package, split in tasks for row in scores(engine, weights, package, split)]
    report = Report("int8", "Scores from int8 weights", rows, NOTES, checks_of(rows))
    print(write_report(report, str(torch.get_num_threads())))


def task_of(package: str, rows: str) -> tuple[Package, Split]:
    """A package, and the rows that it is judged by."""
    read = read_package(package)
    return read, load_split(read.manifest.task, rows)


def scores(engine: Engine, weights: str, package: Package, split: Split) -> list[Row]:
    """The metrics of a package on an engine."""
    task = package.manifest.task
    engine.add(package)
    name = package.manifest.name
    fields = (*task.text_fields, *task.choice_fields)
    inputs = [row[fields[0]] if len(fields) == 1 else {field: row[field] for field in fields} for row in split.rows]
    found = [
        answer for first in range(0, len(inputs), AT_ONCE) for answer in asked(engine, name, inputs[first:][:AT_ONCE])
    ]
    outputs = np.array([[answer.value] if answer.value is not None else answer.scores for answer in found])
    measured = compute(task, outputs, np.array(split.targets))
    setup = {"task": f"{name}, {len(inputs):,} rows, by {task.metrics[0]}", "key": (name, task.metrics[0])}
    return [Row(weights, setup, measured)]


def asked(engine: Engine, name: str, inputs: Sequence[Any]) -> list[Any]:
    """The engine's answers to so many rows."""
    pending = engine.classify(name, inputs)
    while not all(future.done() for future in pending.futures):
        engine.step()
    return [future.result() for future in pending.futures]


def checks_of(rows: Sequence[Row]) -> list[str]:
    """By how much every task's first metric fell."""
    found: dict[tuple[str, str], Mapping[str, Any]] = {}
    for row in rows:
        name, metric = row.setup["key"]
        found.setdefault((name, metric), {})[row.case] = row.measured[metric]  # type: ignore[index]
    return [
        verdict(f"{name}: {metric} lost to int8", values["float"] - values["int8"], MOST)
        for (name, metric), values in found.items()
    ]


if __name__ == "__main__":
    main()
