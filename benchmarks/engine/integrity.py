"""Bits that flip in weights under load: which are found, how soon, what was answered meanwhile, what it costs.

python -m benchmarks.engine.integrity [--flips N] [--rounds N] [--switches N] [--dtypes D ...]
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import random
import statistics
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.engine.bit_flips import BITS, PLACES, flip, resident_of, setting, word_of
from benchmarks.harness import Report, Row, in_turn, verdict, write_report
from benchmarks.packages import BACKBONE, example_texts, numbered, random_package
from sparsehub.backbone import load_backbone
from sparsehub.engine import Engine, Limits
from sparsehub.engine.cost_model import MIXED, SWAP
from sparsehub.errors import SparsehubError

TASKS, CLIENTS, ROWS, LOOK_SECONDS = 8, 4, 256, 1.0
TIMES = 10  # so many times all rows in a round, which then is of several looks
COMPOSED = "task0+task2*0.5"
DTYPES = ("float32", "bfloat16", "float16")
CLOSE = 2e-3  # two answers of one text differ by no more, whatever runs beside it; looser in half precision
TOLERANCE = {"float32": CLOSE, "float16": 5e-2, "bfloat16": 2e-1}
MOST_COST = 0.02
CHECK_SECONDS, SETTLE_SECONDS = 0.5, 0.4


def main() -> None:
    warnings.filterwarnings("ignore")
    torch.set_grad_enabled(False)
    parser = argparse.ArgumentParser()
    parser.add_argument("--flips", type=int, default=1, help="bits that flip in every place, each way of running")
    parser.add_argument("--rounds", type=int, default=9, help="of the throughput with and without looks")
    parser.add_argument("--switches", type=int, default=5_000, help="between tasks, in each dtype")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=DTYPES)
    options = parser.parse_args()
    rows, found, bounds = [], [], []
    for dtype in options.dtypes:
        engine = engine_of(dtype)
        for mode in (SWAP, MIXED):
            outcomes = flips_under_load(engine, mode, options.flips, dtype)
            rows += rows_of(outcomes, dtype, mode, engine.arena.bound_seconds)
            found += outcomes
            longest = max((outcome.seconds for outcome in outcomes if not outcome.gone), default=0.0)
            bounds.append(longest / engine.arena.bound_seconds)
        rows.append(exact_switches(engine, dtype, options.switches))
        if dtype == options.dtypes[0]:
            cost, throughput = cost_of_looking(engine, dtype, options.rounds)
        engine.stop()
    seen = [outcome for outcome in found if not outcome.gone]
    share = statistics.fmean(outcome.found for outcome in seen) if seen else 0.0
    rows.append(throughput)
    checks = [
        verdict("share of flipped bits that were found", share, 1.0, least=True),
        verdict("wrong answers after damage was mended", sum(outcome.after for outcome in found), 0),
        verdict("time to find, the longest, of the stated bound", max(bounds), 1.0),
        verdict("time of the model thread that looks take, of all", cost, MOST_COST),
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
    "`no effect`: a switch has written over the place before its turn came; these count as neither found nor missed.",
    "Throughput is the median of rounds with and without looks, in turn, every other round backwards. On a shared "
    "machine it differs by some percent from one run to the next, so the limit is on the time that looks take.",
)


@dataclass(frozen=True)
class Outcome:
    """One flipped bit."""

    place: str
    found: bool
    gone: bool  # a switch has written over it before it was looked for
    seconds: float  # until it was found
    wrong: int
    refused: int
    after: int  # wrong answers after it was mended


def engine_of(dtype: str) -> Engine:
    """A started engine with tasks that add, that set, and a composition."""
    backbone = load_backbone(BACKBONE, dtype=dtype)
    engine = Engine(backbone, Limits(queue_rows=4 * ROWS), check_seconds=LOOK_SECONDS)
    package = random_package(backbone, 0)
    for number in range(TASKS):
        its = dataclasses.replace(package, **numbered(package, backbone, number))
        engine.add(its if number % 2 == 0 else setting(its, backbone))
    engine.start()
    return engine


def names_of() -> list[str]:
    return [f"task{n}" if n % 2 == 0 else f"task{n}-set" for n in range(TASKS)] + [COMPOSED]


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
    choices, outcomes, bits = random.Random(f"{mode} {dtype}"), [], itertools.cycle(range(3))
    load = Load(engine, TOLERANCE[dtype])
    with engine.acquire(COMPOSED), load.running():
        for place in list(PLACES) * flips:
            bit = next(bits)  # of the mantissa, of the exponent, the sign, in every place and way
            outcomes.append(one_flip(engine, load, place, bit, choices))
            print(dtype, mode, outcomes[-1], file=sys.stderr, flush=True)
    return outcomes


def one_flip(engine: Engine, load: Load, place: str, bit: int, choices: random.Random) -> Outcome:
    """Flip a bit, wait until it is found or gone, and count what was answered meanwhile."""
    arena = engine.arena
    resident = resident_of(engine, choices.choice(names_of()))
    with arena.lock:
        arena.swap.to(None)
        tensor, entry = PLACES[place](engine, resident, choices)
        right = word_of(tensor, entry)
        if place == "patched position" and engine.mode == SWAP:
            arena.swap.to(resident.patch)
        spot = Spot(tensor, entry, right, arena.swap.moves)
        flip(tensor, entry, BITS[tensor.element_size()][bit])
        wrong, refused, failures, start = load.wrong, load.refused, arena.failures, time.monotonic()
    found, gone = False, False
    while not (found or gone) and time.monotonic() - start < 3 * arena.bound_seconds:
        found = wait_for(lambda: arena.failures > failures, CHECK_SECONDS)
        gone = not found and spot.is_right_again(engine, failures)
    seconds, wrong, refused = time.monotonic() - start, load.wrong - wrong, load.refused - refused
    time.sleep(SETTLE_SECONDS)  # what was running when it was found is answered
    after = load.wrong
    time.sleep(SETTLE_SECONDS)
    return Outcome(place, found, gone, seconds, wrong, refused, load.wrong - after)


def wait_for(happened: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not happened() and time.monotonic() < end:
        time.sleep(0.02)
    return happened()


@dataclass(frozen=True)
class Spot:
    """Where a bit flipped."""

    tensor: Tensor
    entry: int
    right: int  # the bits that were there, without a patch in the arena
    moves: int  # of the arena, when it flipped

    def is_right_again(self, engine: Engine, failures: int) -> bool:
        """Whether a switch has written over the damage, which is not found then. failures: when it flipped."""
        arena = engine.arena
        with arena.lock:
            if arena.failures > failures or arena.swap.moves == self.moves:
                return False
            arena.swap.to(None)
            return word_of(self.tensor, self.entry) == self.right


def rows_of(outcomes: Sequence[Outcome], dtype: str, mode: str, bound: float) -> list[Row]:
    setup = {"dtype": dtype, "way": mode, "tasks": TASKS, "stated bound s": bound}
    rows = []
    for place in PLACES:
        its = [outcome for outcome in outcomes if outcome.place == place]
        seen = [outcome.seconds for outcome in its if not outcome.gone]
        measured: dict[str, Any] = {
            "flips": len(its),
            "found": sum(outcome.found for outcome in its),
            "no effect": sum(outcome.gone for outcome in its),
            "median s": statistics.median(seen) if seen else 0.0,
            "longest s": max(seen, default=0.0),
            "wrong": sum(outcome.wrong for outcome in its),
            "refused": sum(outcome.refused for outcome in its),
            "wrong after": sum(outcome.after for outcome in its),
        }
        rows.append(Row(place, setup, measured))
    return rows


def exact_switches(engine: Engine, dtype: str, switches: int) -> Row:
    """Many switches between tasks that add, that set, and both at once, while nothing else runs: the arena is the
    backbone's again, bit for bit."""
    arena, weights = engine.arena, engine.backbone.arena
    with engine.acquire(COMPOSED):
        patches = [resident_of(engine, name).patch for name in ("task0", "task1-set", "task2", "task3-set", COMPOSED)]
        with arena.lock:
            arena.swap.to(None)
            before, start = weights.digest(), time.monotonic()
            for number in range(switches):
                arena.swap.to(patches[number * 3 % len(patches)])
            arena.swap.to(None)
            seconds, exact = time.monotonic() - start, weights.digest() == before
    measured = {"exact": "yes" if exact else "NO", "ms a switch": seconds / switches * 1e3}
    return Row(f"{switches:,} switches", {"dtype": dtype, "switches": switches}, measured)


def cost_of_looking(engine: Engine, dtype: str, rounds: int) -> tuple[float, Row]:
    """What looks cost: their share of the model thread's time, and rows a second with them and without."""
    seconds: dict[float, list[float]] = {LOOK_SECONDS: [], 0.0: []}
    engine.mode = "auto"
    with timed_looks(engine) as looks:
        for case in in_turn(list(seconds), rounds + 2):
            with engine.arena.lock:  # what was not looked at in a round without looks is not made up for
                engine.arena._check_seconds, engine.arena._checked = case, time.monotonic()
            seconds[case].append(sum(seconds_of_rows(engine) for _ in range(TIMES)))
    pairs = list(zip(seconds[LOOK_SECONDS][2:], seconds[0.0][2:], strict=True))
    share = sum(looks) / sum(seconds[LOOK_SECONDS])
    measured = {
        "rows a second with looks": TIMES * ROWS / statistics.median(a for a, _ in pairs),
        "without": TIMES * ROWS / statistics.median(b for _, b in pairs),
        "cost by these": 1 - 1 / statistics.median(a / b for a, b in pairs),
        "time of looks, of all": share,
    }
    return share, Row("throughput", {"dtype": dtype, "tasks": TASKS, "rounds": rounds}, measured)


@contextmanager
def timed_looks(engine: Engine) -> Iterator[list[float]]:
    """The seconds of every look of the model thread."""
    arena, seconds = engine.arena, list[float]()
    look = arena.check_if_due

    def timed() -> None:
        start = time.perf_counter()
        look()
        seconds.append(time.perf_counter() - start)

    arena.check_if_due = timed  # type: ignore[method-assign]
    try:
        yield seconds
    finally:
        del arena.check_if_due


def seconds_of_rows(engine: Engine) -> float:
    texts, names, start = example_texts()[:16], names_of(), time.perf_counter()
    futures = [f for i in range(ROWS // 16) for f in engine.classify(names[i % TASKS], texts).futures]
    for future in futures:
        future.result(600)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
