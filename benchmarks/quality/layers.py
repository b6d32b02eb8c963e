"""What a task loses that changes the last layers alone, and what sixteen of them cost on one text.

    python -m benchmarks.quality.layers run --data FOLDER    # the scores: last 1, 2, 3 and all layers, three seeds
    python -m benchmarks.quality.layers render

FOLDER is that of `benchmarks.quality`. Every other setting is the default. At most 300 training and 150 validation rows
are read, all test rows; a run whose line is there is not run again. The costs are those of `benchmarks.engine.trunk`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.quality import untuned
from benchmarks.quality.runs import lines

RESULTS = Path(__file__).parents[1] / "results"
SCORES, COSTS = RESULTS / "layers.jsonl", RESULTS / "trunk.jsonl"
PAGE = Path(__file__).parents[2] / "docs" / "choose.md"
BEGIN, END = "<!-- layers: begin -->", "<!-- layers: end -->"
TASKS = ("trec", "subj", "sst2", "stsb")
SEEDS = (0, 1, 2)
ROWS = 300
PROBE, ALL = "probe", "all"
# What `benchmarks.engine.trunk` calls the same: which layers are changed, and the way in which a batch of them runs.
COSTED = {
    PROBE: ("the head alone", "trunk"),
    "last:1": ("the last 1 of 6 layers", "trunk"),
    "last:2": ("the last 2 of 6 layers", "trunk"),
    "last:3": ("the last 3 of 6 layers", "trunk"),
    ALL: ("the last 1 of 6 layers", "mixed"),  # nothing is shared: a row for every task and text
}
Line = Mapping[str, Any]


@dataclass(frozen=True)
class Depth:
    """One choice of layers: its scores, and what sixteen tasks that made it cost on the same texts."""

    layers: str
    scores: Mapping[str, Sequence[float]]  # by task, a seed each; of the probe one
    times_plain: float  # of one plain forward of the texts
    answers: float  # a second

    @property
    def mean(self) -> float:
        """Over the tasks."""
        return statistics.mean(map(statistics.mean, self.scores.values()))


def depths(scores: Sequence[Line], costs: Sequence[Line]) -> list[Depth]:
    """Every choice that was run on all tasks and whose cost is known."""
    found = []
    for layers, (changed, case) in COSTED.items():
        by_task = {task: scores_of(task, layers, scores) for task in TASKS}
        cost = cost_of(changed, case, costs)
        if all(by_task.values()) and cost:
            found.append(Depth(layers, by_task, round(cost["times plain"], 2), round(cost["answers a second"])))
    return found


def scores_of(task: str, layers: str, scores: Sequence[Line]) -> list[float]:
    """Test scores, a seed each; the probe is the same for every seed and layers."""
    its = [line for line in scores if line["task"] == task]
    if layers == PROBE:
        return [line["probe"] for line in its][:1]
    return [line["test"] for line in its if line["settings"].get("layers", ALL) == layers]


def cost_of(changed: str, case: str, costs: Sequence[Line]) -> Mapping[str, float]:
    """The newest measurement; of the mean-pooled heads of all-MiniLM-L6-v2's size."""
    its = [
        line
        for line in costs
        if line["case"] == case
        and line["setup"].get("changed") == changed
        and line["setup"]["encoder"] == "6 x 384"
        and line["setup"]["heads"] == "mean pooling"
    ]
    return max(its, key=lambda line: line["date"])["measured"] if its else {}


def table(found: Sequence[Depth]) -> list[str]:
    """A row for every choice of layers."""
    head = ["layers", *TASKS, "mean", "16 tasks on one text, times one plain pass", "answers a second"]
    rows = [
        [
            depth.layers,
            *(_cell(depth.scores[task]) for task in TASKS),
            f"{depth.mean:.3f}",
            f"{depth.times_plain:g}",
            f"{depth.answers:,}",
        ]
        for depth in found
    ]
    return ["| " + " | ".join(row) + " |" for row in (head, ["---", *["---:"] * (len(head) - 1)], *rows)]


def _cell(scores: Sequence[float]) -> str:
    spread = f" ± {statistics.stdev(scores):.3f}" if len(scores) > 1 else ""
    return f"{statistics.mean(scores):.3f}{spread}"


def report(scores: Sequence[Line], costs: Sequence[Line]) -> str:
    """The page of the results."""
    commits = ", ".join(sorted({line["commit"] for line in scores}))
    versions = sorted({json.dumps(line["versions"], sort_keys=True) for line in scores})
    return "\n".join(
        [
            "# Few layers or all",
            "",
            *table(depths(scores, costs)),
            "",
            f"- test score, mean ± deviation over seeds {', '.join(map(str, SEEDS))}: accuracy; of STS-B the mean of",
            "  Pearson and Spearman. all-MiniLM-L6-v2, 6 layers; `sam`, every other setting at its default, at most",
            f"  {ROWS} training rows.",
            "- the costs are those of [trunk.md](trunk.md): 16 tasks with mean-pooled heads asked about the same 16",
            "  rows of 32 tokens. `all`: the tasks share nothing, and there is a row for every task and text.",
            f"- {len(scores)} runs on {scores[0]['device']}, commits {commits}; {'; '.join(versions)}.",
            "",
        ]
    )


def put_into(page: str, rows: Sequence[str]) -> str:
    """The page with the table between its marks; they may hold anything."""
    before, _, rest = page.partition(BEGIN)
    return "\n".join([f"{before}{BEGIN}", "", *rows, "", f"{END}{rest.partition(END)[2]}"])


def run(data: Path) -> None:
    """Every run that has no line yet, seed by seed."""
    for seed in SEEDS:
        for layers in (name for name in COSTED if name != PROBE):
            told = ["run", "--data", str(data), "--results", str(SCORES), "--rows", str(ROWS), "--seeds", str(seed)]
            depth = [] if layers == ALL else ["--set", f"layers={layers}"]
            untuned.run_all(untuned.parse([*told, "--tasks", *TASKS, *depth]))


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality.layers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("verb", choices=("run", "render"))
    parser.add_argument("--data", type=Path, default=Path("data"))
    arguments = parser.parse_args(sys.argv[1:])
    if arguments.verb == "run":
        run(arguments.data)
    scores, costs = list(lines(SCORES)), list(lines(COSTS))
    SCORES.with_suffix(".md").write_text(report(scores, costs), encoding="utf-8")
    PAGE.write_text(put_into(PAGE.read_text(encoding="utf-8"), table(depths(scores, costs))), encoding="utf-8")


if __name__ == "__main__":
    main()
