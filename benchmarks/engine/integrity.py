"""Bits that flip in weights under load: which are found, how soon, what was answered meanwhile, what it costs.

python -m benchmarks.engine.integrity [--flips N] [--rounds N] [--switches N] [--dtypes D ...]
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import statistics
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.engine.bit_flips import BITS, PLACES, flip, resident_of, setting
from benchmarks.harness import Report, Row, in_turn, verdict, write_report
from benchmarks.packages import BACKBONE, example_texts, numbered, random_package
from sparsehub.backbone import load_backbone
from sparsehub.engine import Engine, Limits
from sparsehub.engine.cost_model import MIXED, SWAP
from sparsehub.engine.swap import Swap
from sparsehub.errors import SparsehubError

TASKS, CLIENTS, ROWS = 16, 4, 256
DTYPES = ("float32", "bfloat16", "float16")
CLOSE = 2e-3  # two answers of one text differ by no more, whatever runs beside it; looser in half precision
TOLERANCE = {"float32": CLOSE, "float16": 5e-2, "bfloat16": 2e-1}
MOST_COST = 0.02


def main() -> None:
    warnings.filterwarnings("ignore")
    torch.set_grad_enabled(False)
    parser = argparse.ArgumentParser()
    parser.add_argument("--flips", type=int, default=6, help="bits that flip in every place, each way of running")
    parser.add_argument("--rounds", type=int, default=21, help="of the throughput with and without looks")
    parser.add_argument("--switches", type=int, default=100_000, help="between tasks, in each dtype")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=DTYPES)
    options = parser.parse_args()
    rows, found, bounds = [], [], []
    for dtype in options.dtypes:
        engine = engine_of(dtype)
        for mode in (SWAP, MIXED):
            outcomes = flips_under_load(engine, mode, options.flips, dtype)
            rows += rows_of(outcomes, dtype, mode, engine.arena.bound_seconds)
            found += outcomes
            bounds.append(max(outcome.seconds for outcome in outcomes) / engine.arena.bound_seconds)
        engine.stop()
        rows.append(exact_switches(dtype, options.switches))
    cost, row = cost_of_looking(options.rounds)
    rows.append(row)
    checks = [
        verdict("share of flipped bits that were found", statistics.fmean(o.found for o in found), 1.0, least=True),
        verdict("time to find, the longest, of the stated bound", max(bounds), 1.0),
        verdict("cost in throughput", cost, MOST_COST),
    ]
    print(
        write_report(Report("integrity", "Flipped bits under load", rows, NOTES, checks), str(torch.get_num_threads()))
    )


NOTES = (
    f"{TASKS} tasks on {BACKBONE}, half of them `set`, half `add`, and a composition of two; {CLIENTS} clients ask all "
    "of them without a pause. A bit of the mantissa, of the exponent or the sign flips in the place; the next one when "
    "the damage was found and mended.",
    "`stated bound`: how long damage stays unseen at most, by docs/serving.md, as this machine computes checksums. It "
    "is not widened for a loaded machine.",
    "`wrong`: answers that differ from those before the flip by more than rounding, between the flip and its being "
    "found; `refused`: that ended with an error in that time; `wrong after`: after it was mended, which must be 0.",
    "`no effect`: flips that were not there any more when they were looked for, because the task was taken out of the "
    "arena and its place put right; they count as neither found nor missed.",
    "The cost in throughput is the median of rounds with and without looks, in turn, every other round backwards.",
)


@dataclass(frozen=True)
class Outcome:
    """One flipped bit."""

    place: str
    found: bool
    gone: bool  # put right by a switch before anybody looked
    seconds: float  # until it was found
    wrong: int
    refused: int
    after: int  # wrong answers after it was mended


def engine_of(dtype: str, check_seconds: float = 1.0) -> Engine:
    """A started engine with tasks that add, that set, and a composition."""
    backbone = load_backbone(BACKBONE, dtype=dtype)
    engine = Engine(backbone, Limits(queue_rows=4 * ROWS), check_seconds=check_seconds)
    package = random_package(backbone, 0)
    for number in range(TASKS):
        its = dataclasses.replace(package, **numbered(package, backbone, number))
        engine.add(its if number % 2 == 0 else setting(its, backbone))
    engine.start()
    return engine


def names_of() -> list[str]:
    return [f"task{n}" if n % 2 == 0 else f"task{n}-set" for n in range(TASKS)] + ["task0+task2*0.5"]


class Load:
    """Clients that ask all tasks without a pause, and count what they get."""

    def __init__(self, engine: Engine, tolerance: float):
        self.engine, self.tolerance = engine, tolerance
        self.texts = example_texts()[:3]
        self.right = {name: self._scores(name) for name in names_of()}
        self.wrong = self.refused = self.answered = 0
        self._over = threading.Event()

    def _scores(self, name: str) -> list[tuple[float, ...]]:
        return [p.scores for p in self.engine.classify(name, self.texts).results(600)]

    @contextmanager
    def running(self) -> Iterator[None]:
        threads = [threading.Thread(target=self._ask, args=(seed,)) for seed in range(CLIENTS)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._over.set()
            for thread in threads:
                thread.join()

    def _ask(self, seed: int) -> None:
        choices, names = random.Random(seed), list(self.right)
        while not self._over.is_set():
            name = choices.choice(names)
            try:
                scores = self._scores(name)
            except SparsehubError:
                self.refused += 1
                continue
            self.answered += 1
            self.wrong += any(
                abs(a - b) > self.tolerance
                for x, y in zip(scores, self.right[name], strict=True)
                for a, b in zip(x, y, strict=True)
            )


def flips_under_load(engine: Engine, mode: str, flips: int, dtype: str) -> list[Outcome]:
    engine.mode = mode
    choices, outcomes = random.Random(f"{mode} {dtype}"), []
    load = Load(engine, TOLERANCE[dtype])
    with engine.acquire("task0+task2*0.5"), load.running():
        for number in range(flips):
            for place in PLACES:
                outcomes.append(one_flip(engine, load, place, number, choices))
                print(dtype, mode, outcomes[-1], file=sys.stderr, flush=True)
    return outcomes


def one_flip(engine: Engine, load: Load, place: str, number: int, choices: random.Random) -> Outcome:
    arena, name = engine.arena, choices.choice(names_of())
    resident = resident_of(engine, name)
    with arena.lock:
        if place == "patched position" and engine.mode == SWAP:
            arena.swap.to(resident.patch)
        tensor, entry = PLACES[place](engine, resident, choices)
        failures = arena.failures
        flip(tensor, entry, BITS[tensor.element_size()][number % 3])
        damaged = tensor.reshape(-1)[entry].item()
        wrong, refused, start = load.wrong, load.refused, time.monotonic()
    bound = arena.bound_seconds
    while arena.failures == failures and time.monotonic() - start < 3 * bound:
        time.sleep(0.02)
    seconds, found = time.monotonic() - start, arena.failures > failures
    wrong, refused = load.wrong - wrong, load.refused - refused
    gone = not found and tensor.reshape(-1)[entry].item() != damaged
    resident_of(engine, name)
    time.sleep(1.0)  # what was running when it was found is answered
    after = load.wrong
    time.sleep(1.0)
    return Outcome(place, found or gone, gone, 0.0 if gone else seconds, wrong, refused, load.wrong - after)


def rows_of(outcomes: Sequence[Outcome], dtype: str, mode: str, bound: float) -> list[Row]:
    setup = {"dtype": dtype, "way": mode, "tasks": TASKS, "stated bound s": bound}
    rows = []
    for place in PLACES:
        its = [outcome for outcome in outcomes if outcome.place == place]
        seen = [outcome.seconds for outcome in its if not outcome.gone]
        measured: dict[str, Any] = {
            "flips": len(its),
            "found": sum(outcome.found and not outcome.gone for outcome in its),
            "no effect": sum(outcome.gone for outcome in its),
            "median s": statistics.median(seen) if seen else 0.0,
            "longest s": max(seen, default=0.0),
            "wrong": sum(outcome.wrong for outcome in its),
            "refused": sum(outcome.refused for outcome in its),
            "wrong after": sum(outcome.after for outcome in its),
        }
        rows.append(Row(place, setup, measured))
    return rows


def exact_switches(dtype: str, switches: int) -> Row:
    """Many switches between tasks that add, set, and both at once; the arena is the backbone's again, bit for bit."""
    backbone = load_backbone(BACKBONE, dtype=dtype)
    engine = Engine(backbone, check_seconds=0)
    package = random_package(backbone, 0)
    for number in range(2):
        its = dataclasses.replace(package, **numbered(package, backbone, number))
        engine.add(its)
        engine.add(setting(its, backbone))
    engine.load("task0+task1*0.5")
    names = ("task0", "task1", "task0-set", "task1-set", "task0+task1*0.5")
    patches = [resident_of(engine, name).patch for name in names]
    swap, before, start = Swap(backbone.arena), backbone.arena.digest(), time.monotonic()
    for number in range(switches):
        swap.to(patches[number * 3 % len(patches)])
    swap.to(None)
    seconds, exact = time.monotonic() - start, backbone.arena.digest() == before
    measured = {"exact": "yes" if exact else "NO", "ms a switch": seconds / switches * 1e3}
    engine.stop()
    return Row(f"{switches:,} switches", {"dtype": dtype, "switches": switches}, measured)


def cost_of_looking(rounds: int) -> tuple[float, Row]:
    """What looks cost in throughput: rows a second with them and without."""
    engines = {"with": engine_of("float32"), "without": engine_of("float32", check_seconds=0)}
    texts, names = example_texts()[:16], names_of()
    seconds: dict[str, list[float]] = {case: [] for case in engines}
    for case in in_turn(list(engines), rounds + 2):
        start = time.perf_counter()
        futures = [f for i in range(ROWS // 16) for f in engines[case].classify(names[i % TASKS], texts).futures]
        for future in futures:
            future.result(600)
        seconds[case].append(time.perf_counter() - start)
    for engine in engines.values():
        engine.stop()
    pairs = list(zip(seconds["with"][2:], seconds["without"][2:], strict=True))
    cost = 1 - 1 / statistics.median(a / b for a, b in pairs)
    measured = {
        "rows a second with looks": ROWS / statistics.median(a for a, _ in pairs),
        "without": ROWS / statistics.median(b for _, b in pairs),
        "cost": cost,
    }
    return cost, Row("throughput", {"dtype": "float32", "tasks": TASKS, "rounds": rounds}, measured)


if __name__ == "__main__":
    main()
