"""Which method a user should take: methods x tasks x seeds on public data, one line of results a run.

    python -m benchmarks.quality run --data FOLDER                  # what a CPU can: cb copa wsc rte trec, 3 seeds
    python -m benchmarks.quality run --data FOLDER --plan gpu --seeds 5 --workers 8
    python -m benchmarks.quality render                             # the table and the plots, from the lines there are

FOLDER holds one folder a task with train.jsonl, dev.jsonl and test.jsonl. A run whose line is there is not run again:
an interrupted benchmark goes on. Nothing is rendered that was not run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.quality.render import render
from benchmarks.quality.runs import RESULTS, run_all
from benchmarks.quality.setup import METHODS, PLANS, TASKS


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("verb", choices=("run", "render"))
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--plan", choices=sorted(PLANS), default="cpu")
    parser.add_argument("--tasks", nargs="+", choices=sorted(TASKS))
    parser.add_argument("--methods", nargs="+", choices=list(METHODS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    return parser.parse_args(arguments)


def main() -> None:
    arguments = parse(sys.argv[1:])
    if arguments.verb == "run":
        run_all(arguments)
    render(arguments.results)


if __name__ == "__main__":
    main()
