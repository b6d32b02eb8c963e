"""The tables of `benchmarks.quality`, from the lines of its results file and nothing else.

A cell stands where every trial of its grid was run; it says how many seeds it rests on. The others say "not run".
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.quality.runs import FIRST_SEED, best_trial
from benchmarks.quality.setup import COMPARED, METHODS, PLANS, TASKS

NOT_RUN = "not run"
REFERENCE = "full"
Line = Mapping[str, Any]


@dataclass(frozen=True)
class Result:
    """A cell of the table. runs: of the learning rate that was best on the dev split, one a seed."""

    method: str
    column: tuple[str, str]  # plan and task
    runs: tuple[Line, ...]

    @property
    def scores(self) -> tuple[float, ...]:
        return tuple(run["test"] for run in self.runs)

    @property
    def mean(self) -> float:
        return statistics.mean(self.scores)

    @property
    def deviation(self) -> float | None:
        return statistics.stdev(self.scores) if len(self.runs) > 1 else None

    def __str__(self) -> str:
        spread = "" if self.deviation is None else f" ± {self.deviation:.3f}"
        return f"{self.mean:.3f}{spread} ({len(self.runs)})"


Results = dict[tuple[str, tuple[str, str]], Result]


def results_of(lines: Iterable[Line]) -> Results:
    """By method and column, every cell whose trials are complete."""
    groups: dict[tuple[str, tuple[str, str]], list[Line]] = {}
    for line in lines:
        groups.setdefault((line["method"], (line["plan"], line["task"])), []).append(line)
    found = {key: _result(key, group) for key, group in groups.items()}
    return {key: result for key, result in found.items() if result is not None}


def _result(key: tuple[str, tuple[str, str]], group: Sequence[Line]) -> Result | None:
    trials = [line for line in group if line["seed"] == FIRST_SEED]
    if {line["learning_rate"] for line in trials} != set(trials[0]["grid"] if trials else ()) or not trials:
        return None
    best = best_trial(trials)["learning_rate"]
    runs = sorted((line for line in group if line["learning_rate"] == best), key=lambda line: line["seed"])
    return Result(*key, tuple(runs))


def columns_of(results: Results) -> list[tuple[str, str]]:
    """Plan and task of every column, in the order of the benchmark."""
    order = {name: place for place, name in enumerate(TASKS)}
    return sorted(
        {column for _, column in results}, key=lambda column: (list(PLANS).index(column[0]), order[column[1]])
    )


def complete_columns(results: Results) -> list[tuple[str, str]]:
    """Those that every compared method with any cell has: averages and ranks are over them."""
    compared = [method for method in rows_of(results) if method in COMPARED]
    return [column for column in columns_of(results) if all((method, column) in results for method in compared)]


def rows_of(results: Results) -> list[str]:
    """Methods with at least one cell, in the order of the benchmark."""
    return [method for method in METHODS if any(name == method for name, _ in results)]


def average_rank(results: Results, method: str, columns: Sequence[tuple[str, str]]) -> float | None:
    """Mean place among the methods of each column, 1 the best; ties share. None where a column was not run."""
    if not columns or any((method, column) not in results for column in columns):
        return None
    places = []
    for column in columns:
        mine = results[method, column].mean
        others = [result.mean for (_, where), result in results.items() if where == column]
        better, equal = sum(o > mine for o in others), sum(o == mine for o in others)
        places.append(better + (equal + 1) / 2)
    return statistics.mean(places)


def differences(results: Results, method: str, columns: Sequence[tuple[str, str]]) -> list[float]:
    """Score less that of full fine-tuning, for every task and seed that both were run on."""
    found = []
    for column in columns:
        if (method, column) in results and (REFERENCE, column) in results:
            theirs = {run["seed"]: run["test"] for run in results[REFERENCE, column].runs}
            found += [r["test"] - theirs[r["seed"]] for r in results[method, column].runs if r["seed"] in theirs]
    return found


def sign_flip_p(differences: Sequence[float]) -> float | None:
    """Two-sided exact p of a mean difference: the share of all sign changes that move it as far from zero.

    None for fewer than 5 pairs, of which no result could be significant, and for more than 20.
    """
    if not 5 <= len(differences) <= 20:
        return None
    observed = abs(sum(differences)) - 1e-12
    flips = itertools.product((1, -1), repeat=len(differences))
    sums = [abs(sum(s * d for s, d in zip(signs, differences, strict=True))) for signs in flips]
    return sum(total >= observed for total in sums) / len(sums)


def table(results: Results) -> list[str]:
    """Methods by tasks in Markdown; mean and deviation over seeds."""
    columns = columns_of(results)
    head = ["method", *(task for _, task in columns), "average", "rank", "less full", "p", "stored", "peak MiB"]
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    return [*lines, *("| " + " | ".join(_row(results, method, columns)) + " |" for method in rows_of(results))]


def _row(results: Results, method: str, columns: Sequence[tuple[str, str]]) -> list[str]:
    cells = [results.get((method, column)) for column in columns]
    there = [cell for cell in cells if cell is not None]
    complete = complete_columns(results)
    rank, apart = average_rank(results, method, complete), differences(results, method, columns)
    p = sign_flip_p(apart) if method != REFERENCE else None
    return [
        method,
        *(str(cell) if cell else NOT_RUN for cell in cells),
        "-" if rank is None else f"{statistics.mean(results[method, column].mean for column in complete):.3f}",
        "-" if rank is None else f"{rank:.1f}",
        "-" if method == REFERENCE or not apart else f"{statistics.mean(apart):+.3f} ({len(apart)})",
        "-" if p is None else f"{p:.2f}",
        _stored(there),
        f"{max(run['peak_mib'] for cell in there for run in cell.runs):,}",
    ]


def _stored(cells: Sequence[Result]) -> str:
    """The largest delta or adapter; what was judged before it was cut to the budget is stored dense, unless LoRA."""
    run = max((run for cell in cells for run in cell.runs), key=lambda run: run["bytes"])
    dense = METHODS[run["method"]].whole and run["method"] in ("full", "mixout")
    return "all weights" if dense else f"{run['bytes'] / 1e6:.2f} MB"


def chosen_rates(results: Results) -> list[str]:
    """The learning rate that the dev split chose for each cell, and the score there."""
    columns = columns_of(results)
    lines = ["| method | " + " | ".join(task for _, task in columns) + " |", "|---|" + "---:|" * len(columns)]
    for method in rows_of(results):
        cells = [results.get((method, column)) for column in columns]
        lines.append(f"| {method} | " + " | ".join(_rate(c.runs[0]) if c else NOT_RUN for c in cells) + " |")
    return lines


def _rate(run: Line) -> str:
    return f"{run['learning_rate']:g} ({run['dev']:.3f})"


def cut_costs(results: Results) -> list[str]:
    """What the methods that train more than a package holds would lose at the budget."""
    cells = [result for result in results.values() if "cut" in result.runs[0]]
    lines = ["| method | task | trained | cut to the budget | squared norm kept |", "|---|---|---:|---:|---:|"]
    for cell in sorted(cells, key=lambda cell: (columns_of(results).index(cell.column), cell.method)):
        cut, kept = (statistics.mean(run[name] for run in cell.runs) for name in ("cut", "kept"))
        lines.append(f"| {cell.method} | {cell.column[1]} | {cell.mean:.3f} | {cut:.3f} | {kept:.1%} |")
    return lines if cells else []


def conditions(results: Results, lines: Sequence[Line]) -> list[str]:
    """How each column was run, in words."""
    found = []
    for plan_name, task in columns_of(results):
        plan = PLANS[plan_name]
        used = [line for line in lines if (line["plan"], line["task"]) == (plan_name, task)]
        rows = f"{plan.rows[task]:,} training rows" if plan.rows.get(task) else "all training rows"
        grid = ", ".join(f"{rate:g}" for rate in plan.grid)
        found.append(
            f"- **{task}**: {TASKS[task].measure}; {rows}, {plan.epochs[task]:g} epochs, batches of {plan.batch_size}, "
            f"{plan.max_length[task]} tokens; learning rates {grid}; head {plan.head_learning_rate:g}; "
            f"{plan.precision}; majority {used[0]['majority']:.3f}; {len(used)} runs on {used[0]['device']}"
        )
    return found


NOTES = (
    "mean ± deviation of the test score (seeds). Every method had the same trials: the grid on the first seed, the "
    "best on the dev split kept for the others. A cell whose grid was not finished is not run.",
    "average and rank: over the tasks on which full fine-tuning and all methods that the paper compares were run, for "
    "methods that were run on all of those. less full: mean difference to full fine-tuning (pairs of the same task and "
    "seed, of all tasks), p by exact sign flips, from 5 to 20 pairs.",
    "`full`, `mixout` and `lora` are judged as trained, before anything is cut to a budget. stored: the delta's file, "
    "or the adapter at 16 bits a value, without the head; entries that ended where they began are not stored.",
    "The selection rules and `diff-pruning`, `child-pruning` change 0.5% of the entries; `bitfit` every bias.",
)


def report(lines: Sequence[Line]) -> list[str]:
    """Everything that is said about the runs, in Markdown."""
    results = results_of(lines)
    if not results:
        return ["No cell is complete."]
    notes = [f"- {note}" for note in NOTES]
    cut = cut_costs(results)
    return [
        *table(results),
        "",
        *notes,
        "",
        "How it was run:",
        "",
        *conditions(results, lines),
        "",
        "Learning rate that the dev split chose (dev score):",
        "",
        *chosen_rates(results),
        *(["", "What the budget of 0.5% would leave of what trains more:", "", *cut] if cut else []),
    ]
