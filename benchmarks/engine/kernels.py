"""What a mixed pass spends where on a CPU: the sparse part of each linear layer beside its plain product and beside
what memory alone would take, and whole passes by kind of work.

    python -m benchmarks.engine.kernels
    SPARSEHUB_CPU=avx2 ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2 python -m benchmarks.engine.kernels

One thread, by the processor's time for it, so that other programs disturb little.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from benchmarks.engine.mixed import LIMITS, Tasks, run_mixed, tasks_of
from benchmarks.harness import KEY, Report, Row, in_turn, verdict, write_report
from benchmarks.models import DENSITY, SIZES
from sparsehub.engine.mixed_forward import MixedBatch
from sparsehub.engine.target_modules import sample_batch
from sparsehub.kernels import Segments, SparseChange, changes_of, native, segments_of

LAYERS = ((384, 384, 3), (384, 384, 1), (384, 1536, 1), (1536, 384, 1), (768, 768, 3), (768, 3072, 1), (3072, 768, 1))
BATCHES = ((16, 16, 16), (16, 32, 1))  # rows, tokens of each, tasks
PASSES = (*BATCHES, (16, 32, 4), (16, 32, 16))
ROUNDS = 41
PASS_ROUNDS = 9
PARTS: Mapping[str, tuple[tuple[Any, str], ...]] = {  # kind of work -> the functions that do it
    "products": ((torch.nn.functional, "linear"), (native, "linear")),
    "sparse part": ((native, "_sparse_linear"),),
    "norms": ((torch.nn.functional, "layer_norm"), (native, "_norm")),
    "embeddings": ((torch.nn.functional, "embedding"), (native, "sparse_lookup_")),
    "tables": ((MixedBatch, "__init__"),),
}
NOTES = (
    "Layers: microseconds a call, the median of rounds in turn; maps of one input (3 x) are computed together. "
    "`packing`: x to feature-major blocks. `sums`: dW x. `writing`: b and the sums to y, transposed back. They are "
    "differences between the whole and calls with an empty dW and with a bias alone.",
    "`floor`: a copy that reads and writes as many bytes as x, dW and y have. `of the product`: the sparse part as a "
    "share of the plain product, which is what a pass with it is slower by, less the copy of b that it saves.",
    "Passes: milliseconds, medians. `rest`: attention, activations and Python.",
    f"Every task changes {DENSITY:.1%} of each matrix at random.",
)


@dataclass(frozen=True)
class Layer:
    """One input, the maps that share it, and their changes whole, without entries, and with a bias alone."""

    x: Tensor
    weights: Sequence[Tensor]
    bias: Tensor
    ys: Sequence[Tensor]
    segments: Segments
    changes: Mapping[str, Sequence[Any]]


def main() -> None:
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    with torch.inference_mode():
        rows = [measure_layer(batch, *layer) for batch in BATCHES for layer in LAYERS]
        with tempfile.TemporaryDirectory() as folder:
            os.environ["SPARSEHUB_CACHE"] = folder
            for size in SIZES:
                tasks = tasks_of(size, Path(folder) / size.replace(" ", ""))
                rows += [row for batch in PASSES for row in measure_pass(size, tasks, batch)]
    report = Report("kernels", "What a mixed pass spends where, on a CPU", rows, NOTES, checks_of(rows))
    print(write_report(report, "1"))


def checks_of(rows: Sequence[Row]) -> list[str]:
    """Whether the limits of `benchmarks.engine.mixed` held."""
    limits = [(row, LIMITS.get(row.setup.get(KEY))) for row in rows if row.case == "mixed"]
    return [
        verdict(row.setup["passes of"], row.measured["times plain"], limit)
        for row, limit in limits
        if limit is not None
    ]


def measure_layer(batch: tuple[int, int, int], inside: int, out: int, maps: int) -> Row:
    layer = make_layer(batch, inside, out, maps)
    moved = torch.empty(moved_bytes(layer) // 8)
    target = torch.empty_like(moved)
    calls: dict[str, Callable[[], Any]] = {
        "product": lambda: [torch.nn.functional.linear(layer.x, weight, layer.bias) for weight in layer.weights],
        "floor": lambda: target.copy_(moved),
        **{name: sparse_call(layer, changes) for name, changes in layer.changes.items()},
    }
    took = cpu_times(calls, ROUNDS)
    rows, tokens, tasks = batch
    measured = {
        "product": took["product"],
        "sparse part": took["whole"],
        "packing": took["empty"] - took["bias"],
        "sums": took["whole"] - took["empty"],
        "writing": took["bias"],
        "floor": took["floor"],
    }
    shown = {f"{name}, µs": value * 1e6 for name, value in measured.items()}
    setup = {"layers of": f"{rows} rows of {tokens} tokens, {tasks} task{'s' if tasks > 1 else ''}"}
    of_product = took["whole"] / took["product"]
    return Row(f"{inside} to {maps} x {out}", setup, {**shown, "of the product": f"{of_product:.1%}"})


def make_layer(batch: tuple[int, int, int], inside: int, out: int, maps: int) -> Layer:
    rows, length, tasks = batch
    tokens = rows * length
    whole = [[random_change(inside, out, 100 * m + task) for task in range(tasks)] for m in range(maps)]
    bias = torch.zeros(out)
    empty = SparseChange(
        (out, inside), torch.zeros(out + 1, dtype=torch.int32), whole[0][0].columns, torch.zeros(1), bias
    )
    return Layer(
        torch.randn(tokens, inside),
        [torch.randn(out, inside) for _ in range(maps)],
        bias,
        [torch.empty(tokens, out) for _ in range(maps)],
        segments_of([(task, task * tokens // tasks, (task + 1) * tokens // tasks) for task in range(tasks)]),
        {
            "whole": [changes_of(parts) for parts in whole],
            "empty": [changes_of([empty] * tasks)] * maps,
            "bias": [changes_of([SparseChange((out, inside), bias=bias)] * tasks)] * maps,
        },
    )


def random_change(inside: int, out: int, seed: int) -> SparseChange:
    generator = torch.Generator().manual_seed(seed)
    positions = torch.randperm(inside * out, generator=generator)[: round(inside * out * DENSITY)].sort().values
    return native.compress(positions, torch.randn(len(positions), generator=generator), out, inside)


def moved_bytes(layer: Layer) -> int:
    changes = sum(part.nbytes for changes in layer.changes["whole"] for part in changes.parts)
    return layer.x.nbytes + sum(y.nbytes for y in layer.ys) + int(changes)


def sparse_call(layer: Layer, changes: Sequence[Any]) -> Callable[[], Any]:
    table: list[int] = []
    for y, change in zip(layer.ys, changes, strict=True):
        table += y.shape[1], layer.bias.data_ptr(), y.data_ptr(), change.address
    return lambda: native._sparse_linear(layer.x, table, layer.segments, fresh=True)


def cpu_times(calls: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """The median of each in seconds of this thread's processor time, in turn."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for name in in_turn(list(calls), 2 + rounds):
        start = time.thread_time()
        calls[name]()
        times[name].append(time.thread_time() - start)
    return {name: statistics.median(found[2:]) for name, found in times.items()}


def measure_pass(size: str, tasks: Tasks, batch: tuple[int, int, int]) -> list[Row]:
    rows, length, count = batch
    inputs = sample_batch(tasks.backbone, rows, length)
    bounds = [(slot, slot * rows // count, (slot + 1) * rows // count) for slot in range(count)]
    calls = {
        "plain": lambda: tasks.backbone.module(**inputs),
        "mixed": lambda: run_mixed(tasks, bounds, inputs),
    }
    took: dict[str, list[dict[str, float]]] = {name: [] for name in calls}
    for name in in_turn(list(calls), 2 + PASS_ROUNDS):
        with watched() as spent:
            start = time.thread_time()
            calls[name]()
            spent["all"] += time.thread_time() - start
        took[name].append(spent)
    setup = {
        "passes of": f"{size}, {rows} rows of {length} tokens, {count} task{'s' if count > 1 else ''}",
        KEY: (size, batch),
    }
    plain = statistics.median(spent["all"] for spent in took["plain"][2:])
    return [Row(name, setup, shown(took[name][2:], plain)) for name in calls]


def shown(passes: Sequence[Mapping[str, float]], plain: float) -> dict[str, float]:
    middle = {part: statistics.median(spent[part] for spent in passes) for part in passes[0]}
    middle["products"] -= middle["sparse part"]  # which is called inside
    rest = middle["all"] - sum(middle[part] for part in PARTS)
    columns = {**middle, "rest": rest}
    return {**{f"{part}, ms": value * 1e3 for part, value in columns.items()}, "times plain": middle["all"] / plain}


@contextmanager
def watched() -> Iterator[dict[str, float]]:
    """Inside, the seconds that each kind of work takes are added up."""
    spent = dict.fromkeys(["all", *PARTS], 0.0)
    with ExitStack() as stack:
        for part, functions in PARTS.items():
            for owner, name in functions:
                stack.enter_context(mock.patch.object(owner, name, timed(getattr(owner, name), part, spent)))
        yield spent


def timed(function: Callable[..., Any], part: str, spent: dict[str, float]) -> Callable[..., Any]:
    def call(*arguments: Any, **named: Any) -> Any:
        start = time.thread_time()
        try:
            return function(*arguments, **named)
        finally:
            spent[part] += time.thread_time() - start

    return call


if __name__ == "__main__":
    main()
