"""Switching, mixing, loading and quantised weights on a GPU: shapes of Llama 8B, random weights, in bfloat16.

    python -m benchmarks.engine.gpu               # needs one GPU with 40 GiB or more, and Triton
    python -m benchmarks.engine.gpu --shape tiny  # a few layers of 64, to try the script, on a CPU too

Everything is made on the device: nothing is downloaded.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.engine.gpu_model import SHAPES, TASKS, Model, make_model
from benchmarks.engine.gpu_steps import stepping
from benchmarks.harness import Report, Row, in_turn, verdict, write_report
from sparsehub.backbone import Backbone
from sparsehub.engine.adapter_weights import AdapterWeights, make_adapter_weights
from sparsehub.engine.mixed_forward import MixedBatch
from sparsehub.engine.packed import packed_base
from sparsehub.engine.packed_matrix import PACKERS
from sparsehub.engine.swap import Swap
from sparsehub.errors import MissingExtraError
from sparsehub.patch import Patch, bind

CONTEXT, ROUNDS = 128, 15
NEEDS = "benchmarks.engine.gpu needs an NVIDIA GPU with 40 GiB or more (for --shape 8B) and Triton; there is none here"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="8B")
    shape = parser.parse_args(arguments).shape
    if not torch.cuda.is_available() and shape != "tiny":
        print(NEEDS, file=sys.stderr)
        return
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with torch.inference_mode():
        model = make_model(shape, device)
        rows = [*switching(model, shape), *decoding(model, shape), *loading(model, shape)]
        plain = next(row.measured["ms"] for row in rows if row.case == "plain")
        del model  # its memory is for the next ones
        rows += [row for weights in PACKERS for row in quantised(shape, device, weights, plain)]
        rows += generating(make_model(shape, device, language=True), shape)
    report = Report(f"gpu_{shape.lower()}", f"On a GPU, {shape} shape", rows, NOTES, checks_of(rows))
    text = write_report(report, "1", kind=torch.cuda.get_device_name() if torch.cuda.is_available() else None)
    print(text)


NOTES = (
    "Medians of interleaved rounds, timed with the device's own events.",
    "switch: the mean of apply and restore; floor: the bytes that one must move (32-byte sectors of the arena, read "
    "and written, positions, values), at the bandwidth that a copy of 1 GiB reaches here.",
    "decode: one token for each of 16 rows over 128 tokens of context, the same rows in all cases; `graph` replays a "
    "captured forward, so that only the device's work counts.",
    "int8, fp8, nf4: the same step on packed weights (`--weights`), without tasks and with all of them; `of float`: of "
    "`plain`; MiB: what passes read in the GPU's memory, without tasks. A kind whose library is missing is left out.",
    "engine: a step of the engine's own text generation, for 16 texts of as many tasks: transformers' batching, "
    "tables, forward and sampling; `graph` is a step whose forward is captured, as with `--compile auto`. Both take "
    "turns over the same texts.",
    "load: batches of one task run back to back while another thread moves tasks from pinned memory to the device.",
)


def timed(cases: dict[str, Callable[[], Any]], device: torch.device) -> dict[str, float]:
    """Median milliseconds of each case, in turn."""
    found: dict[str, list[float]] = {name: [] for name in cases}
    for name in in_turn(list(cases), ROUNDS + 3):
        found[name].append(milliseconds(cases[name], device))
    return {name: statistics.median(times[3:]) for name, times in found.items()}


def milliseconds(call: Callable[[], Any], device: torch.device) -> float:
    if device.type != "cuda":
        start = time.perf_counter()
        call()
        return (time.perf_counter() - start) * 1e3
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    call()
    end.record()
    torch.cuda.synchronize()
    return float(begin.elapsed_time(end))


def switching(model: Model, shape: str) -> list[Row]:
    arena, device = model.backbone.arena, model.backbone.device
    patch, swap = bind(model.layouts[0], arena), Swap(arena)
    big = torch.empty(1 << 30 if device.type == "cuda" else 1 << 22, dtype=torch.uint8, device=device)
    other = torch.empty_like(big)
    found = timed({"copy": lambda: other.copy_(big), "switch": lambda: (swap.to(patch), swap.to(None))}, device)
    bandwidth = 2 * big.numel() / found["copy"]  # bytes a millisecond
    (segment,) = patch.segments
    moved = patch.nnz * (2 * 32 + segment.positions.element_size()) + segment.values.nbytes
    floor = moved / bandwidth
    setup = {"what": "switch", "shape": shape, "entries": patch.nnz, "arena MiB": round(arena.nbytes / 2**20)}
    measured = {"ms": found["switch"] / 2, "floor ms": floor, "of the floor": found["switch"] / 2 / floor}
    return [Row("switch", setup, measured)]


def decoding(model: Model, shape: str) -> list[Row]:
    backbone, arena, device = model.backbone, model.backbone.arena, model.backbone.device
    patches = [bind(layout, arena) for layout in model.layouts]
    adapters = [
        adapter
        for patch in patches
        if isinstance(adapter := make_adapter_weights(model.targets, arena, patch), AdapterWeights)
    ]
    bounds = [(slot, slot, slot + 1) for slot in range(TASKS)]
    step = Step(backbone, device)

    def mixed() -> Tensor:
        with MixedBatch(model.targets, adapters, bounds).on_model():
            return step.run()

    cases: dict[str, Callable[[], Any]] = {"plain": step.run, "mixed": mixed}
    if device.type == "cuda":
        batch = MixedBatch(model.targets, adapters, bounds)
        cases |= {"plain, graph": captured(step.run), "mixed, graph": captured_mixed(batch, step)}
    found = timed(cases, device)
    setup = {"what": "decode", "shape": shape, "rows": TASKS, "tasks": TASKS, "context": CONTEXT}
    return [
        Row(name, setup, {"ms": ms, "of plain": ms / found["plain, graph" if "graph" in name else "plain"]})
        for name, ms in found.items()
    ]


def quantised(shape: str, device: torch.device, weights: str, plain: float) -> list[Row]:
    """A decoding step on packed weights. plain: ms of one on float weights."""
    model = make_model(shape, device)
    try:
        base = packed_base(model.backbone, model.targets, weights, True)
    except MissingExtraError as error:
        print(error, file=sys.stderr)
        return []
    targets = dataclasses.replace(model.targets, packed=base)
    arena, step = model.backbone.arena, Step(model.backbone, device)
    made = [make_adapter_weights(targets, arena, bind(layout, arena)) for layout in model.layouts]
    adapters = [adapter for adapter in made if isinstance(adapter, AdapterWeights)]
    batches = {
        weights: MixedBatch(targets, [None], [(0, 0, TASKS)]),
        f"{weights}, mixed": MixedBatch(targets, adapters, [(slot, slot, slot + 1) for slot in range(TASKS)]),
    }
    cases: dict[str, Callable[[], Any]] = {name: on_model(batch, step) for name, batch in batches.items()}
    if device.type == "cuda":
        cases |= {f"{name}, graph": captured_mixed(batch, step) for name, batch in batches.items()}
    read = sum(tensor.nbytes for _, tensor in base.tensors) if base.copies else None
    setup = {"what": "decode", "shape": shape, "rows": TASKS, "tasks": TASKS, "context": CONTEXT}
    size = {} if read is None else {"MiB": round(read / 2**20)}
    return [Row(name, setup, {"ms": ms, "of float": ms / plain, **size}) for name, ms in timed(cases, device).items()]


def on_model(batch: MixedBatch, step: Step) -> Callable[[], Tensor]:
    """The step as a mixed batch."""

    def run() -> Tensor:
        with batch.on_model():
            return step.run()

    return run


def generating(model: Model, shape: str) -> list[Row]:
    backbone = model.backbone
    patches = [bind(layout, backbone.arena) for layout in model.layouts]
    found = stepping(
        backbone, model.targets, patches, CONTEXT, 2 * (ROUNDS + 8), lambda cases: timed(cases, backbone.device)
    )
    setup = {"what": "a step of the engine", "shape": shape, "rows": TASKS, "tasks": TASKS, "context": CONTEXT}
    plain = found["engine, plain"]
    return [Row(name, setup, {"ms": ms, "of plain": ms / plain}) for name, ms in found.items()]


class Step:
    """One decoding step over a context that stays as it is: each run begins with the same keys and values."""

    def __init__(self, backbone: Backbone, device: torch.device):
        config = backbone.config
        head = config.hidden_size // config.num_attention_heads
        size = (TASKS, config.num_key_value_heads, CONTEXT, head)
        self._module = backbone.module
        self._ids = torch.randint(config.vocab_size, (TASKS, 1), device=device)
        self._context = [
            tuple(torch.randn(size, dtype=backbone.dtype, device=device) for _ in range(2))
            for _ in range(config.num_hidden_layers)
        ]

    def run(self) -> Tensor:
        from transformers import DynamicCache

        cache = DynamicCache()
        for layer, (keys, values) in enumerate(self._context):
            cache.update(keys, values, layer)
        states: Tensor = self._module(self._ids, past_key_values=cache, use_cache=True).last_hidden_state
        return states


def captured(call: Callable[[], Any]) -> Callable[[], None]:
    """The device's work of a call, to be replayed."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def captured_mixed(batch: MixedBatch, step: Step) -> Callable[[], None]:
    with batch.on_model():
        return captured(step.run)


def loading(model: Model, shape: str) -> list[Row]:
    """Batches while nothing else happens, and while tasks come to the device."""
    device, ids = model.backbone.device, torch.randint(model.backbone.config.vocab_size, (16, 64))
    ids = ids.to(device)

    def batch() -> None:
        model.backbone.module(ids, use_cache=False)

    alone = statistics.median(milliseconds(batch, device) for _ in range(ROUNDS))
    stop, loads = threading.Event(), [0]

    def load() -> None:
        while not stop.is_set():
            beside(model, loads[0] % TASKS)
            loads[0] += 1

    thread = threading.Thread(target=load)
    thread.start()
    busy = statistics.median(milliseconds(batch, device) for _ in range(ROUNDS))
    stop.set()
    thread.join()
    setup = {"what": "load", "shape": shape, "rows": 16, "tokens": 64, "entries": model.layouts[0].nnz}
    return [Row("batch alone", setup, {"ms": alone, "of alone": 1.0}),
            Row("batch beside loads", setup, {"ms": busy, "of alone": busy / alone, "loads": loads[0]})]  # fmt: skip


def beside(model: Model, number: int) -> Patch:
    """A task from pinned memory to the device, on a stream of its own."""
    device = model.backbone.device
    if device.type != "cuda":
        return bind(model.layouts[number], model.backbone.arena)
    stream = torch.cuda.Stream(device)
    with torch.cuda.stream(stream):
        patch = bind(model.layouts[number], model.backbone.arena)
    stream.synchronize()
    return patch


def checks_of(rows: Sequence[Row]) -> list[str]:
    """The figures that we hold ourselves to on one data-centre GPU, for the 8B shape."""
    by_case = {row.case: row.measured for row in rows}
    decode = "mixed, graph" if "mixed, graph" in by_case else "mixed"
    found = [
        ("a switch, ms", by_case["switch"]["ms"], 3.0),
        ("a switch, of its floor", by_case["switch"]["of the floor"], 2.5),
        ("a mixed decoding step, of a plain one", by_case[decode]["of plain"], 1.30),
        ("a batch beside loads, of one alone", by_case["batch beside loads"]["of alone"], 1.05),
    ]
    return [verdict(what, value, limit) for what, value, limit in found]


if __name__ == "__main__":
    main()
