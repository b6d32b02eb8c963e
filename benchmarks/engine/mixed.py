"""One batch of many tasks: mixed, one task after the other, PEFT's mixed LoRA batch, beside a plain forward."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import Case, Report, Row, bar_plot, interleaved, verdict, write_report
from benchmarks.models import SIZES, load_plain, lora_model, save_encoder, whole_delta
from sparsehub.backbone import Backbone, load_backbone
from sparsehub.engine.adapter_weights import AdapterWeights, make_adapter_weights
from sparsehub.engine.mixed_forward import MixedBatch
from sparsehub.engine.swap import Swap
from sparsehub.engine.target_modules import TargetModules, find_target_modules, sample_batch
from sparsehub.patch import Patch, make_patch

BATCHES = ((16, 16, 16), (16, 32, 1), (16, 32, 4), (16, 32, 16), (64, 16, 64))  # rows, tokens of each, tasks
MOST_TASKS = 64
ROUNDS = 13
PLAIN, MIXED, SWAPPED, LORA, MODELS = (
    "plain forward, one task",
    "sparsehub: mixed",
    "sparsehub: swap, task by task",
    "PEFT LoRA r=8, adapter_names",
    "a model for each task",
)
# The largest ratio to the plain forward that we hold ourselves to, by size and batch.
LIMITS = {("6 x 384", (16, 16, 16)): 1.15, ("12 x 768", (16, 16, 16)): 1.15} | {
    ("6 x 384", (16, 32, tasks)): 1.15 for tasks in (1, 4, 16)
}


@dataclass(frozen=True)
class Tasks:
    """One backbone with its tasks, in both forms."""

    backbone: Backbone
    targets: TargetModules
    swap: Swap
    patches: Sequence[Patch]
    adapters: Sequence[AdapterWeights]


def main() -> None:
    warnings.filterwarnings("ignore")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        os.environ["SPARSEHUB_CACHE"] = folder
        for size in SIZES:
            rows += measure(size, Path(folder) / size.replace(" ", ""))
    report = Report("mixed", "A batch of many tasks", rows, NOTES, checks_of(rows))
    print(write_report(report, str(torch.get_num_threads())))
    labels = [label(row) for row in rows if row.case == MIXED]
    series = {
        case: [row.measured["times plain"] for row in rows if row.case == case] for case in (MIXED, SWAPPED, LORA)
    }
    bar_plot("mixed", "Time of a batch, as a multiple of a plain forward of the same rows", labels, series)


def label(row: Row) -> str:
    rows, length, tasks = row.setup["key"]
    return f"{row.setup['encoder']}\n{rows} rows of {length}\n{tasks} task{'s' if tasks > 1 else ''}"


NOTES = (
    "Interleaved rounds, medians. `times plain`: against one plain forward of the same rows, which can serve one task.",
    "Every task changes 0.5% of the whole backbone: matrices, embeddings, norms and biases, unevenly.",
    "PEFT's adapters have rank 8 on all linear layers. `a model for each task` runs each task's rows on a model of its "
    "own, 6 x 384 and 16 tasks only; it needs as many copies of the backbone.",
    "`difference`: the largest between a mixed batch's outputs and those of the same weights in place.",
)


def checks_of(rows: Sequence[Row]) -> list[str]:
    """Which of the limits held in this run."""
    lines = []
    for row in rows:
        limit = LIMITS.get((row.setup["encoder"], row.setup["key"]))
        if row.case == MIXED and limit is not None:
            what = f"{row.setup['encoder']}, {row.setup['batch']}"
            lines.append(verdict(what, row.measured["times plain"], limit))
    return lines


def measure(size: str, folder: Path) -> list[Row]:
    tasks, lora = tasks_of(size, folder), lora_model(folder, MOST_TASKS)
    return [row for key in BATCHES for row in measure_batch(size, key, tasks, lora, folder)]


def tasks_of(size: str, folder: Path) -> Tasks:
    """A backbone of this size, saved in the folder, with sixteen tasks."""
    save_encoder(size, folder)
    backbone = load_backbone(str(folder))
    targets, patches = (
        find_target_modules(backbone),
        [make_patch(backbone, whole_delta(backbone, n)) for n in range(16)],
    )
    adapters = [
        adapter
        for patch in patches
        if isinstance(adapter := make_adapter_weights(targets, backbone.arena, patch), AdapterWeights)
    ]
    return Tasks(backbone, targets, Swap(backbone.arena), patches, adapters)


def measure_batch(size: str, key: tuple[int, int, int], tasks: Tasks, lora: Any, folder: Path) -> list[Row]:
    rows, length, count = key
    batch = sample_batch(tasks.backbone, rows, length)
    bounds = [(slot, slot * rows // count, (slot + 1) * rows // count) for slot in range(count)]
    calls: dict[str, Callable[[], Any]] = {
        PLAIN: lambda: tasks.backbone.module(**batch),
        MIXED: lambda: run_mixed(tasks, bounds, batch),
        SWAPPED: lambda: run_swapped(tasks, bounds, batch),
        LORA: lambda: lora(
            **batch, adapter_names=[f"t{slot}" for slot, start, stop in bounds for _ in range(start, stop)]
        ),
    }
    if size == "6 x 384" and count == 16:
        models = [load_plain(folder).eval() for _ in bounds]
        calls[MODELS] = lambda: [models[slot](**cut(batch, start, stop)) for slot, start, stop in bounds]
    difference = float((run_mixed(tasks, bounds, batch) - run_swapped(tasks, bounds, batch)).abs().max())
    empty = lambda: tasks.swap.to(None)  # noqa: E731
    timings = interleaved([Case(name, call, empty) for name, call in calls.items()], ROUNDS)
    setup = {
        "encoder": size,
        "batch": f"{rows} rows of {length} tokens, {count} task{'s' if count > 1 else ''}",
        "entries a task": tasks.patches[0].nnz,
        "key": key,
    }
    return [
        Row(
            name,
            setup,
            {
                "median ms": timings[name].median,
                "times plain": timings[name].median / timings[PLAIN].median,
                "fastest, times plain's": timings[name].fastest / timings[PLAIN].fastest,
                **({"difference": f"{difference:.1e}"} if name == MIXED else {}),
            },
        )
        for name in calls
    ]


def cut(batch: Mapping[str, Tensor], start: int, stop: int) -> dict[str, Tensor]:
    return {name: tensor[start:stop] for name, tensor in batch.items()}


def run_mixed(tasks: Tasks, bounds: Sequence[tuple[int, int, int]], batch: Mapping[str, Tensor]) -> Tensor:
    """More slots than tasks use tasks again, each slot as a task of its own."""
    adapters = [tasks.adapters[slot % len(tasks.adapters)] for slot, _, _ in bounds]
    tasks.swap.to(None)
    with MixedBatch(tasks.targets, adapters, bounds).on_model():
        states: Tensor = tasks.backbone.module(**batch).last_hidden_state
    return states


def run_swapped(tasks: Tasks, bounds: Sequence[tuple[int, int, int]], batch: Mapping[str, Tensor]) -> Tensor:
    parts = []
    for slot, start, stop in bounds:
        tasks.swap.to(tasks.patches[slot % len(tasks.patches)])
        parts.append(tasks.backbone.module(**cut(batch, start, stop)).last_hidden_state)
    return torch.cat(parts)


if __name__ == "__main__":
    main()
