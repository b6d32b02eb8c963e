"""The whole engine under traffic: how many tasks cost how much, and whether it chooses well.

python -m benchmarks.engine.many_tasks
"""

from __future__ import annotations

import dataclasses
import random
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from benchmarks.harness import Report, Row, in_turn, line_plot, verdict, write_report
from benchmarks.models import lora_model
from benchmarks.packages import BACKBONE, SPEC, example_texts, numbered, random_package
from sparsehub.backbone import load_backbone
from sparsehub.engine import Engine, Limits
from sparsehub.engine.batch_planner import AUTO
from sparsehub.engine.cost_model import MIXED, SWAP
from sparsehub.package.encoding import collate, encode

TASKS = (1, 4, 16, 64, 256, 1000)
TRAFFIC = ("uniform", "zipf", "one hot")
BATCH_ROWS, ROWS, ROUNDS = 64, 256, 9
HELD, HELD_ROUNDS = (64, 1000), 21
PEFT_TASKS, PEFT_ROUNDS, PEFT = 64, 2, "PEFT LoRA r=8, adapter_names"
MODES = {"sparsehub, its own choice": AUTO, "sparsehub, swap only": SWAP, "sparsehub, mixed where possible": MIXED}
OWN = next(iter(MODES))


def main() -> None:
    warnings.filterwarnings("ignore")
    torch.set_grad_enabled(False)
    backbone, texts = load_backbone(BACKBONE), example_texts()
    engine = Engine(backbone, Limits(queue_rows=4 * ROWS, batch_rows=BATCH_ROWS))
    package = random_package(backbone, 0)
    base = package.manifest.backbone
    for number in range(max(TASKS)):
        engine.add(dataclasses.replace(package, **numbered(package, backbone, number)))
        if number % 100 == 0:
            print(f"{number} tasks in memory, {engine.usage.device_bytes / 2**20:.0f} MiB", file=sys.stderr, flush=True)
    engine.start()
    lora = lora_model(backbone.checkpoint.folder, PEFT_TASKS)
    rows = [row for kind in TRAFFIC for row in measure(engine, lora, kind, texts)]
    shares = measure_shares(engine, texts)
    engine.stop()
    report = Report("engine", f"Traffic over many tasks on {base.id}", rows, NOTES, checks_of(rows, shares))
    print(write_report(report, str(torch.get_num_threads())))
    zipf = {case: [figure(rows, "zipf", tasks, case, "rows a second") for tasks in TASKS] for case in MODES}
    peft = [figure(rows, "zipf", tasks, PEFT, "rows a second") for tasks in TASKS if tasks <= PEFT_TASKS]
    title = "Rows a second, Zipf traffic over many tasks on one backbone"
    line_plot("engine", title, TASKS, {**zipf, PEFT: peft}, ("tasks", "rows a second"))


NOTES = (
    "All rows of a case are queued at once and answered through the engine: tokenising, scheduling, switching or "
    "mixing, heads. All cases of one kind of traffic run in turn, every other round backwards, on the same texts; "
    f"medians of {ROUNDS} rounds, of {PEFT_ROUNDS} for PEFT.",
    "Texts are the demo's support tickets. Every task changes 0.5% of the backbone and has a head of its own.",
    "uniform: every task is as likely; zipf: the n-th task with weight 1 / n; one hot: every other row is of one task.",
    "PEFT's batches hold as many rows in the order of arrival, padded, without heads; adapters of rank 8 on all linear "
    "layers. More than 64 adapters were not tried.",
    "`of the better`: time against the better of swap only and mixed; `of one task`: rows a second against one task's. "
    "Both are medians of the rounds' ratios: a slow minute slows both adapters of one.",
    "The figures at 64 and 1,000 tasks (Zipf, its own choice) are measured after the tables: these cells and that of "
    f"one task run in turn with nothing between them, {HELD_ROUNDS} rounds. In the tables' order half a minute lies "
    "between two cells, and a single one varies by a fifth.",
)


def measure(engine: Engine, lora: Any, kind: str, texts: Sequence[str]) -> list[Row]:
    """Every way of running the same texts over every number of tasks, all in turn: one slow minute slows them all."""
    calls: dict[Cell, Callable[[], Any]] = {}
    for tasks, rows in traffic(kind, texts).items():
        for name, mode in MODES.items():
            calls[tasks, name] = lambda mode=mode, rows=rows: serve(engine, mode, rows)
        if tasks <= PEFT_TASKS:
            calls[tasks, PEFT] = lambda rows=rows: run_lora(engine, lora, rows)
    seconds = seconds_of(calls, ROUNDS, kind)
    return [row_of(kind, tasks, name, seconds) for tasks, name in seconds]


def measure_shares(engine: Engine, texts: Sequence[str]) -> dict[int, float]:
    """By number of tasks, rows a second against those of one task: Zipf traffic, its own choice."""
    calls: dict[Cell, Callable[[], Any]] = {}
    for tasks, rows in traffic("zipf", texts).items():
        if tasks in (1, *HELD):
            calls[tasks, OWN] = lambda rows=rows: serve(engine, AUTO, rows)
    seconds = seconds_of(calls, HELD_ROUNDS, "zipf, in turn,")
    return {tasks: ratio(seconds[1, OWN], seconds[tasks, OWN]) for tasks in HELD}


def traffic(kind: str, texts: Sequence[str]) -> dict[int, list[tuple[int, str]]]:
    """By number of tasks, rows (task, text): the same texts for all."""
    choices = random.Random(kind)
    drawn = [choices.choice(texts) for _ in range(ROWS)]
    return {tasks: list(zip(draw(kind, tasks, ROWS, choices), drawn, strict=True)) for tasks in TASKS}


Cell = tuple[int, str]


def seconds_of(calls: Mapping[Cell, Callable[[], Any]], rounds: int, title: str) -> dict[Cell, list[float]]:
    """Seconds of every round of every cell, but of one that warms up."""
    seconds: dict[Cell, list[float]] = {cell: [] for cell in calls}
    for cell in in_turn(list(calls), rounds + 1):
        if cell[1] == PEFT and len(seconds[cell]) > PEFT_ROUNDS:
            continue
        start = time.perf_counter()
        calls[cell]()
        seconds[cell].append(time.perf_counter() - start)
        print(title, *cell, f"{ROWS / seconds[cell][-1]:.0f} rows a second", file=sys.stderr, flush=True)
    return {cell: found[1:] for cell, found in seconds.items()}


def row_of(kind: str, tasks: int, name: str, seconds: Mapping[Cell, Sequence[float]]) -> Row:
    measured = {"rows a second": ROWS / statistics.median(seconds[tasks, name])}
    if name in MODES:
        others = [seconds[tasks, other] for other, mode in MODES.items() if mode != AUTO]
        measured["of the better"] = max(ratio(seconds[tasks, name], other) for other in others)
        measured["of one task"] = ratio(seconds[1, name], seconds[tasks, name])
    return Row(name, {"traffic": kind, "tasks": tasks, "rows": ROWS, "key": [kind, tasks]}, measured)


def ratio(some: Sequence[float], others: Sequence[float]) -> float:
    """Of two cells' seconds, round by round; the median."""
    return statistics.median(a / b for a, b in zip(some, others, strict=True))


def draw(kind: str, tasks: int, count: int, choices: random.Random) -> list[int]:
    """The tasks of so many rows."""
    if kind == "one hot":
        return [0 if choices.random() < 0.5 else choices.randrange(tasks) for _ in range(count)]
    weights = [1 / (number + 1) if kind == "zipf" else 1.0 for number in range(tasks)]
    return choices.choices(range(tasks), weights, k=count)


def serve(engine: Engine, mode: str, rows: Sequence[tuple[int, str]]) -> None:
    engine.mode = mode
    futures = [engine.classify(f"task{number}", [text]).futures[0] for number, text in rows]
    for future in futures:
        future.result(600)


def run_lora(engine: Engine, lora: Any, rows: Sequence[tuple[int, str]]) -> None:
    for start in range(0, len(rows), BATCH_ROWS):
        part = rows[start : start + BATCH_ROWS]
        batch = collate(engine.tokenizer, encode(SPEC, engine.tokenizer, [{"text": text} for _, text in part]))
        lora(**batch, adapter_names=[f"t{number}" for number, _ in part])


def figure(rows: Sequence[Row], kind: str, tasks: int, case: str, column: str) -> float:
    return float(next(r.measured[column] for r in rows if r.setup["key"] == [kind, tasks] and r.case == case))


def checks_of(rows: Sequence[Row], shares: Mapping[int, float]) -> list[str]:
    """The figures that the engine is held to, and whether they held in this run."""
    worst = max(figure(rows, kind, tasks, OWN, "of the better") for kind in TRAFFIC for tasks in TASKS)
    lines = [verdict("its own choice against the better of swap and mixed, the worst of all cases", worst, 1.10)]
    for tasks, share in shares.items():
        lines.append(verdict(f"rows a second at {tasks:,} tasks, Zipf, of those at one task", share, 0.85, least=True))
    own, peft = (figure(rows, "zipf", PEFT_TASKS, case, "rows a second") for case in (OWN, PEFT))
    lines.append(verdict(f"against PEFT at {PEFT_TASKS} tasks, Zipf, times", own / peft, 2.5, least=True))
    return lines


if __name__ == "__main__":
    main()
