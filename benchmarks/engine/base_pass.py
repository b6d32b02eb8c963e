"""One task's rows through the whole engine, beside the forward of one model in what else a user would pick.

    pip install -e '.[dev,bench]' && python -m benchmarks.engine.base_pass

Peers that are not installed are left out, and the report says so.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.engine.base_pass_peers import PEERS, Forward
from benchmarks.harness import Case, Report, Row, Timing, bar_plot, interleaved, verdict, write_report
from benchmarks.packages import BACKBONE, random_package
from sparsehub import Engine, load_backbone
from sparsehub.kernels.openmp import release_threads

BATCHES = ((1, 16), (16, 16), (16, 32), (16, 128))  # rows, tokens of each
ROUNDS = 9
OWN_ROUNDS = 200
REST = 0.6  # seconds between two cases, more than a model thread is idle before it gives its threads back
OURS = {"float32": "sparsehub's engine, float32", "int8": "sparsehub's engine, int8"}
EAGER = "transformers, eager float32"
COMPILE_SECONDS = 600.0
# The engine's time from submit to result, as a share of a peer's forward; `fastest`: of those of the same weights.
LIMITS: Mapping[tuple[str, tuple[int, int]], tuple[str, float]] = {
    ("float32", (1, 16)): ("ONNX Runtime, float32", 1.25),
    ("float32", (16, 32)): ("fastest", 1.10),
    ("float32", (16, 128)): ("fastest", 1.10),
    ("int8", (16, 32)): ("fastest", 1.15),
    ("int8", (16, 128)): ("fastest", 1.15),
}
OWN_LIMIT = 1.5  # ms
TASKS = 16
SHARED = {"float32": "sparsehub's engine, float32, 16 tasks", "int8": "sparsehub's engine, int8, 16 tasks"}
SHARED_LIMITS = {"float32": 1.12, "int8": 1.20}  # a row of each of 16 tasks in one mixed pass, beside rows of one task
TOLERANCE = 1e-3  # between float32 states


@dataclass(frozen=True)
class _Kept:
    """Stands in for the backbone's pass: what it returned once, so that what is left is the engine's own time."""

    outputs: Any

    def takes(self, _: dict[str, Tensor]) -> bool:
        """It runs any batch, as a compiled pass does that is used for all."""
        return True

    def __call__(self, _: dict[str, Tensor]) -> Any:
        return self.outputs


def main() -> None:
    warnings.filterwarnings("ignore")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SPARSEHUB_CACHE"] = folder
        engines = {weights: started(weights) for weights in OURS}
        forwards, skipped = peers(Path(folder))
        own = own_milliseconds()
        rows = [row for batch in BATCHES for row in measure(batch, engines, forwards)]
        shared = shared_rows(engines)
        for engine in engines.values():
            engine.stop()
    checks = [
        *checks_of(rows),
        *shared_checks(shared),
        verdict("the engine's own time, 1 x 16, one task, CPU ms", own, OWN_LIMIT),
    ]
    report = Report("base_pass", "One task's rows, beside one model", [*rows, *shared], [*NOTES, *skipped], checks)
    print(write_report(report, str(torch.get_num_threads())))
    labels = [f"{rows} x {tokens} tokens" for rows, tokens in BATCHES]
    compared = [row for row in rows if row not in shared]
    cases = {row.case: 0 for row in compared}
    series = {case: [row.measured["times eager"] for row in compared if row.case == case] for case in cases}
    bar_plot("base_pass", "Time of a batch of one task, as a share of transformers' eager pass", labels, series)


NOTES = (
    f"{BACKBONE}; interleaved rounds, medians; each turn begins with a rest, and two calls that do not count. The "
    "engine's time is from submit to the pooled vectors of all rows, with queue and threads, of a task that changes "
    "0.5% of the weights; that of a peer is a forward of one model.",
    "`kind`: what the Linear maps multiply by. int8 weights have a scale for each output; the engine's inputs "
    "have one for each row, those of the peers one for the batch.",
    f"`{TASKS} tasks`: a row for each of as many tasks in one mixed pass, beside as many rows of one task.",
)


def started(weights: str) -> Engine:
    """An engine with all tasks, its passes compiled where they can be."""
    kind = "int8" if weights == "int8" else "float"
    engine = Engine(
        load_backbone(BACKBONE), compile_mode="auto", check_seconds=0, weights=kind, allow_quantised=kind == "int8"
    )
    for number in range(TASKS):
        engine.add(random_package(engine.backbone, number))
    engine.start()
    engine.compiler.join(COMPILE_SECONDS)
    return engine


def peers(folder: Path) -> tuple[dict[str, tuple[str, Forward]], list[str]]:
    """The forwards of all peers that are installed, by name, with the kind of their weights; and what is missing."""
    model: Any = load_backbone(BACKBONE).module
    found: dict[str, tuple[str, Forward]] = {EAGER: ("float32", lambda batch: model(**batch).last_hidden_state)}
    skipped: list[str] = []
    for name, (kind, build) in PEERS.items():
        try:
            run = build(model, folder)
            _refuse_wrong(name, kind, run, model)
            found[name] = (kind, run)
        except ImportError as error:
            skipped.append(f"{name}: left out, {error.name} is not installed (pip install 'sparsehub[bench]').")
        except Exception as error:  # a peer that does not work here is no reason not to measure the others
            skipped.append(f"{name}: left out, {type(error).__name__}: {str(error).splitlines()[0][:200]}")
    return found, skipped


@torch.inference_mode()
def _refuse_wrong(name: str, kind: str, run: Forward, model: Any) -> None:
    """Stop where a peer's float32 states are not those of the model."""
    batch = batch_of(3, 11)
    difference = float((run(batch) - model(**batch).last_hidden_state).abs().max())
    if kind == "float32" and difference > TOLERANCE:
        raise SystemExit(f"{name} is off by {difference:.2g}")


def batch_of(rows: int, tokens: int) -> dict[str, Tensor]:
    """A batch of random token ids without padding."""
    ids = torch.randint(1000, 20000, (rows, tokens), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}


def measure(
    size: tuple[int, int], engines: Mapping[str, Engine], forwards: Mapping[str, tuple[str, Forward]]
) -> list[Row]:
    rows, tokens = size
    batch = batch_of(rows, tokens)
    texts = batch["input_ids"].tolist()
    runs: dict[str, Callable[[], Any]] = {OURS[kind]: partial(asked, engine, texts) for kind, engine in engines.items()}
    runs |= {name: partial(run, batch) for name, (_, run) in forwards.items()}
    cases = [Case(name, run, partial(settle, run)) for name, run in runs.items()]
    with torch.inference_mode():
        times = interleaved(cases, ROUNDS)
    kinds = {OURS[kind]: kind for kind in engines} | {name: kind for name, (kind, _) in forwards.items()}
    return [_row(size, name, kinds[name], times) for name in times]


def settle(run: Callable[[], Any]) -> None:
    """Begin a turn with the threads of this case alone: those of the case before it would still wait actively for more,
    and take a processor from it. OpenMP's are gone after the engine's idle time."""
    release_threads()
    time.sleep(REST)
    run()
    run()


def _row(size: tuple[int, int], name: str, kind: str, times: Mapping[str, Timing]) -> Row:
    measured = {
        "kind": kind,
        "ms": times[name].median,
        "fastest ms": times[name].fastest,
        "times eager": times[name].median / times[EAGER].median,
    }
    return Row(name, {"batch": f"{size[0]} x {size[1]}", "key": size}, measured)


def asked(engine: Engine, ids: Sequence[Sequence[int]]) -> list[Any]:
    """The vectors of rows of token ids, from the engine's first task."""
    name = engine.tasks.all()[0].name
    return [future.result() for future in engine.embed(name, ids).futures]


class _Requests:
    """Requests that are queued together: for each task, its rows of token ids. Preparing them is not timed."""

    def __init__(self, engine: Engine, rows: Mapping[str, Sequence[Sequence[int]]]):
        self._engine, self._rows = engine, rows
        self._prepared: list[Any] = []

    def prepare(self) -> None:
        settle(self._whole)
        self._prepare()

    def run(self) -> list[Any]:
        """The vectors of all rows."""
        return [future.result() for pending in self._engine.submit_all(self._prepared) for future in pending.futures]

    def _prepare(self) -> None:
        self._prepared = [self._engine.prepare(name, rows, embed=True) for name, rows in self._rows.items()]

    def _whole(self) -> list[Any]:
        self._prepare()
        return self.run()


def shared_rows(engines: Mapping[str, Engine]) -> list[Row]:
    """Batches of all tasks beside batches of one, both mixed where one must be."""
    size = TASKS, 32
    ids = batch_of(*size)["input_ids"].tolist()
    cases = []
    for kind, engine in engines.items():
        names = [task.name for task in engine.tasks.all()]
        one = _Requests(engine, {names[0]: ids})
        every = _Requests(engine, {name: [row] for name, row in zip(names, ids, strict=True)})
        cases += [Case(OURS[kind], one.run, one.prepare), Case(SHARED[kind], every.run, every.prepare)]
    times = interleaved(cases, ROUNDS)
    setup = {"batch": f"{size[0]} x {size[1]}, tasks beside one", "key": size}
    return [
        Row(
            name,
            setup,
            {
                "ms": times[name].median,
                "fastest ms": times[name].fastest,
                "times one task": times[name].median / times[OURS[kind]].median,
            },
        )
        for kind in engines
        for name in (OURS[kind], SHARED[kind])
    ]


def shared_checks(rows: Sequence[Row]) -> list[str]:
    """Whether a batch of all tasks took what one of a single task does, within the limits."""
    ratios = {row.case: row.measured["times one task"] for row in rows}
    return [verdict(f"{TASKS} tasks, {kind}, beside one", ratios[SHARED[kind]], SHARED_LIMITS[kind]) for kind in SHARED]


def own_milliseconds() -> float:
    """CPU time of a request of one row, from its text to its label, without the backbone's pass."""
    engine = Engine(load_backbone(BACKBONE), check_seconds=0, mode="swap")
    engine.add(random_package(engine.backbone, 1))
    (status,) = engine.status()
    text = ["who wrote the play about the prince of denmark that all read once"]
    runner: Any = engine._loop._runner
    seen: list[Any] = []
    keep: nn.Module = engine.backbone.module
    handle = keep.register_forward_hook(lambda _module, _inputs, outputs: seen.append(outputs))
    _classified(engine, status.task.name, text)
    handle.remove()
    runner._plain = _Kept(seen[-1])
    times = []
    for _ in range(OWN_ROUNDS):
        start = time.thread_time()
        _classified(engine, status.task.name, text)
        times.append((time.thread_time() - start) * 1e3)
    return statistics.median(times)


def _classified(engine: Engine, task: str, text: Sequence[str]) -> Any:
    (future,) = engine.classify(task, text).futures
    while not future.done():
        engine.step()
    return future.result()


def checks_of(rows: Sequence[Row]) -> list[str]:
    """Which of the limits held in this run."""
    lines = []
    for (kind, size), (peer, limit) in LIMITS.items():
        these = {row.case: row.measured for row in rows if row.setup["key"] == size}
        others = {case: m["ms"] for case, m in these.items() if m["kind"] == kind and case not in OURS.values()}
        name = min(others, key=lambda case: others[case]) if peer == "fastest" and others else peer
        if name in others:
            ratio = these[OURS[kind]]["ms"] / others[name]
            lines.append(verdict(f"{size[0]} x {size[1]}, {kind}, beside {name}", ratio, limit))
    return lines


if __name__ == "__main__":
    main()
