"""Many threads that ask many tasks at once, which come and go, while everything that may break breaks now and then.

`make soak` runs the long form: 20,000 requests of 1 to 16 tasks over 300 tasks from 32 threads.
"""

from __future__ import annotations

import dataclasses
import random
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError as FutureCancelled
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from sparsehub.backbone import Backbone, load_backbone
from sparsehub.delta import Delta, ParameterDelta
from sparsehub.engine import Budgets, Engine, Limits, PendingRequest
from sparsehub.errors import QueueFullError, SparsehubError, UnknownTaskError
from sparsehub.files import sha256_bytes
from sparsehub.package import Package
from sparsehub.package.encoding import collate, encode
from sparsehub.package.heads import build_head, run_heads
from sparsehub.package.outputs import answers
from sparsehub.package.task_spec import HeadSpec
from sparsehub.patch import apply_patch, make_patch, restore_patch
from tests.engine.test_stress import Shelf, faults, memory  # noqa: F401 - a fixture
from tests.support import SOAK
from tests.support.tiny_tasks import flat

pytestmark = [pytest.mark.slow, pytest.mark.soak]
TASKS, THREADS, REQUESTS = (300, 32, 20_000) if SOAK else (40, 16, 150)
GENERATIONS, MOST_ASKED = 3, 16
CANCELS, RELOADS = 0.05, 0.5  # of rows; of requests, so that there are as many on a busy machine
TEXTS = ["the quick fox", "who wrote the book about the river", "a good film", "angela met the king of spain"]
REACHES = (".", ".layer.1.", ".layer.1.", "nothing")  # in the names of what is changed: all, the last layer, nothing
Expected = Mapping[tuple[str, str], list[float]]


@dataclass
class MixedShelf(Shelf):
    """Tasks of several depths and with heads of several kinds."""

    kinds: tuple[Package, ...] = field(kw_only=True)

    def package(self, number: int, generation: int) -> Package:
        """The same each time."""
        name = f"task{number}"
        digest = sha256_bytes(f"{name} {generation}".encode())
        if digest not in self.packages:
            generator = torch.Generator().manual_seed(1000 * generation + number)
            sound, reach = self.kinds[number % len(self.kinds)], REACHES[(number + generation) % len(REACHES)]
            parts = {}
            for key, part in sound.delta.parameters.items():
                if reach in f".{key}":
                    places = torch.randperm(part.numel, generator=generator)[: min(12, part.numel)].sort().values
                    parts[key] = ParameterDelta(part.shape, places, torch.randn(len(places), generator=generator) * 0.3)
            head = {k: torch.randn(t.shape, generator=generator) * 0.5 for k, t in sound.head.items()}
            manifest = dataclasses.replace(sound.manifest, name=name)
            self.packages[digest] = Package(manifest, Delta(parts, "add", "float32"), head, digest)
        return self.packages[digest]


@pytest.fixture
def shelf(tiny_tasks: Any) -> MixedShelf:
    heads = [None, HeadSpec("linear", "mean", False, "joint"), HeadSpec("linear", "first", True, "joint")]
    kinds = [tiny_tasks.read(f"stress{place}", labels=2 + place, head=head) for place, head in enumerate(heads)]
    kinds.append(tiny_tasks.read("stress-number", "regression"))
    kinds.append(tiny_tasks.read("stress-words", "token-classification", labels=3))
    return MixedShelf(kinds[0], kinds=tuple(kinds))


def expected_answers(shelf: MixedShelf, backbone: Backbone, tokenizer: Any) -> dict[tuple[str, str], list[float]]:
    """By digest and text, of every task in every generation, with one task at a time in the weights."""
    found = {}
    for number in range(TASKS):
        for generation in range(GENERATIONS):
            package = shelf.package(number, generation)
            spec = package.manifest.task
            head = build_head(backbone, spec, package.head, tokenizer.pad_token_id)
            patch = make_patch(backbone, package.delta)
            apply_patch(backbone.arena, patch)
            with torch.inference_mode():
                for text in TEXTS:
                    rows = encode(spec, tokenizer, [{"text": text}])
                    batch = collate(tokenizer, rows)
                    logits = run_heads([head], [1], batch, backbone.module(**batch))
                    found[package.digest, text] = flat(answers(spec, rows, logits)[0])
            restore_patch(backbone.arena, patch)
    return found


@dataclass
class Found:
    """What became of the rows of all requests."""

    asked: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)  # `answered`, `cancelled`, or the error
    wrong: list[Any] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, outcomes: list[str], asked: int, wrong: list[Any]) -> None:
        with self.lock:
            self.asked += asked
            self.outcomes.update(outcomes)
            self.wrong += wrong


def ask(engine: Engine, shelf: MixedShelf, expected: Expected, found: Found, seed: int) -> None:
    """One request; popular tasks more often, and some tasks twice."""
    choices = random.Random(seed)
    numbers = [min(choices.randrange(TASKS), choices.randrange(TASKS)) for _ in range(choices.randint(1, MOST_ASKED))]
    names, texts = [f"task{number}" for number in numbers], choices.choices(TEXTS, k=choices.randint(1, 2))
    try:
        pending = engine.classify_many(names, texts, timeout=600)
    except QueueFullError as error:
        pending = [error] * len(names)
    for its in pending:
        for future in its.futures if isinstance(its, PendingRequest) else ():
            if choices.random() < CANCELS:
                future.cancel()
    outcomes, wrong = [], []
    for name, its in zip(names, pending, strict=True):
        if isinstance(its, SparsehubError):
            outcomes += [type(its).__name__] * len(texts)
            continue
        assert its.task is not None
        package = shelf.packages.get(its.task.digest)
        for text, future in zip(texts, its.futures, strict=True):
            try:
                answer = flat(future.result(600))
                right = package is not None and package.manifest.name == name
                right = right and answer == pytest.approx(expected[its.task.digest, text], abs=1e-5)
                outcomes.append("answered")
                wrong += [] if right else [(name, its.task.digest, text, answer)]
            except FutureCancelled:
                outcomes.append("cancelled")
            except SparsehubError as error:
                outcomes.append(f"{type(error).__name__}: {error}")
    found.add(outcomes, len(names) * len(texts), wrong)
    if choices.random() < RELOADS:
        reload(engine, shelf, choices)


def reload(engine: Engine, shelf: MixedShelf, choices: random.Random) -> None:
    """A task is another under the same name and version; now and then it is away for a moment before."""
    number = choices.randrange(TASKS)
    if choices.random() < 0.3:
        with suppress(UnknownTaskError):
            engine.remove(f"task{number}")
    engine.register(shelf.task(number, choices.randrange(GENERATIONS), choices), replace=True)


def test_no_row_is_lost_or_foreign_whatever_comes_goes_and_breaks(
    tiny_tasks: Any,
    shelf: MixedShelf,
    faults: Callable[[Engine], None],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, object], None],
) -> None:
    backbone = load_backbone(str(tiny_tasks.folder))
    budgets = Budgets(device_bytes=(60 if SOAK else 8) * 14_000, loaders=2)  # not for all tasks
    engine = Engine(backbone, Limits(queue_rows=512), budgets=budgets, check_seconds=0.01)
    expected = expected_answers(shelf, load_backbone(str(tiny_tasks.folder)), engine.tokenizer)
    before, choices, found = backbone.arena.digest(), random.Random(5), Found()
    for number in range(TASKS):
        engine.register(shelf.task(number, 0, choices))
    engine.start()
    third = REQUESTS // 3
    with monkeypatch.context():
        faults(engine)
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(lambda seed: ask(engine, shelf, expected, found, seed), range(third)))
            settled = memory()
            list(pool.map(lambda seed: ask(engine, shelf, expected, found, seed), range(third, REQUESTS)))
        grown = memory() - settled
    monkeypatch.undo()
    engine.stop()
    record_property("outcomes", {outcome[:60]: count for outcome, count in found.outcomes.most_common(12)})
    record_property("memory", f"{settled:.0f} MiB after a third of the requests, {settled + grown:.0f} at the end")
    record_property("arena", f"{before} before, {backbone.arena.digest()} after")
    record_property("evictions", engine.usage.evictions)
    assert not found.wrong, found.wrong[:3]
    assert found.outcomes.total() == found.asked and found.outcomes["answered"] > 0.6 * found.asked, found.outcomes
    allowed = (
        "answered",
        "UnknownTaskError",
        "QueueFullError",
        "HubError",
        "cancelled",
        "RequestError: the model failed",
    )
    assert all(outcome.startswith(allowed) for outcome in found.outcomes), found.outcomes
    assert backbone.arena.digest() == before and engine.arena.failures == 0 and engine.waiting == 0
    assert all(status.references == 0 for status in engine.status())
    assert engine.usage.evictions > 0 and engine.usage.device_bytes <= budgets.device_bytes
    assert grown < 40, f"{grown:.0f} MiB more after the last two thirds of the requests"
