"""Many threads, many tasks that come and go, and everything that may break breaking now and then.

`make soak` runs the long form: 20,000 requests over 300 tasks from 32 threads.
"""

from __future__ import annotations

import dataclasses
import os
import random
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import CancelledError as FutureCancelled
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

import sparsehub.patch
from sparsehub.backbone import load_backbone
from sparsehub.delta import Delta, ParameterDelta
from sparsehub.engine import Budgets, Engine, Limits, Task
from sparsehub.errors import HubError, QueueFullError, SparsehubError, UnknownTaskError
from sparsehub.files import sha256_bytes
from sparsehub.package import Package, read_package
from sparsehub.package.encoding import collate, encode
from sparsehub.package.heads import build_head
from sparsehub.package.outputs import answers
from tests.support import SOAK

pytestmark = [pytest.mark.slow, pytest.mark.soak]
TASKS, THREADS, REQUESTS = (300, 32, 20_000) if SOAK else (40, 16, 1_200)
TEXTS = ["the quick fox", "who wrote the book about the river", "a good film", "angela met the king of spain"]
LOAD_FAILS, APPLY_FAILS, FORWARD_FAILS, CANCELS = 0.02, 0.01, 0.01, 0.05


@dataclass
class Shelf:
    """Every package that was ever served, by digest: each task in several generations of the same name and version."""

    sound: Package
    packages: dict[str, Package] = field(default_factory=dict)

    def package(self, number: int, generation: int) -> Package:
        """Random entries of every matrix and a random head; the same each time."""
        name = f"task{number}"
        digest = sha256_bytes(f"{name} {generation}".encode())
        if digest not in self.packages:
            generator = torch.Generator().manual_seed(1000 * generation + number)
            parts = {}
            for key, part in self.sound.delta.parameters.items():
                places = torch.randperm(part.numel, generator=generator)[: min(12, part.numel)].sort().values
                parts[key] = ParameterDelta(part.shape, places, torch.randn(len(places), generator=generator) * 0.3)
            head = {k: torch.randn(t.shape, generator=generator) * 0.5 for k, t in self.sound.head.items()}
            manifest = dataclasses.replace(self.sound.manifest, name=name)
            self.packages[digest] = Package(manifest, Delta(parts, "add", "float32"), head, digest)
        return self.packages[digest]

    def task(self, number: int, generation: int, choices: random.Random) -> Task:
        package = self.package(number, generation)

        def load() -> Package:
            if choices.random() < LOAD_FAILS:
                raise HubError("the hub is away")
            return package

        return Task(package.manifest.name, package.manifest.version, package.digest, load)


@pytest.fixture
def shelf(suite: Mapping[str, Path]) -> Shelf:
    return Shelf(read_package(suite["three"]))


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Engine], None]]:
    """faults(engine): from now on applying breaks half-way and forwards raise, now and then; ends with the test."""
    choices, sound = random.Random(7), sparsehub.patch.scatter_add_

    def scatter(arena: torch.Tensor, positions: torch.Tensor, values: torch.Tensor) -> None:
        if choices.random() < APPLY_FAILS:
            sound(arena, positions[: len(positions) // 2], values[: len(positions) // 2])
            raise RuntimeError("injected: the device fell asleep")
        sound(arena, positions, values)

    def begin(engine: Engine) -> None:
        module = engine.backbone.module
        forward = module.forward

        def failing(**inputs: Any) -> Any:
            if choices.random() < FORWARD_FAILS:
                raise RuntimeError("injected: out of memory")
            return forward(**inputs)

        monkeypatch.setattr(module, "forward", failing)
        monkeypatch.setattr(sparsehub.patch, "scatter_add_", scatter)

    yield begin


def memory() -> float:
    """Resident memory in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


@dataclass(frozen=True)
class Asked:
    """What one request got. outcome: scores, or the error's name."""

    name: str
    digest: str | None
    text: str
    outcome: Any


def ask(engine: Engine, choices: random.Random) -> list[Asked]:
    name, texts = f"task{min(choices.randrange(TASKS), choices.randrange(TASKS))}", choices.choices(TEXTS, k=2)
    try:
        ticket = engine.classify(name, texts)
    except (UnknownTaskError, QueueFullError, HubError) as error:
        return [Asked(name, None, text, type(error).__name__) for text in texts]
    if choices.random() < CANCELS:
        for future in ticket.futures:
            future.cancel()
    assert ticket.task is not None
    found = []
    for text, future in zip(texts, ticket.futures, strict=True):
        try:
            outcome: Any = future.result(120).scores
        except FutureCancelled:
            outcome = "cancelled"
        except SparsehubError as error:
            outcome = f"{type(error).__name__}: {error}"
        found.append(Asked(name, ticket.task.digest, text, outcome))
    return found


def churn(engine: Engine, shelf: Shelf, done: threading.Event) -> None:
    """Reload tasks under the same name and version, take some away and bring them back."""
    choices, generations = random.Random(3), dict.fromkeys(range(TASKS), 0)
    while not done.wait(0.002):
        number = choices.randrange(TASKS)
        if choices.random() < 0.3:
            try:
                engine.remove(f"task{number}")
            except UnknownTaskError:
                pass
        generations[number] = (generations[number] + 1) % 3
        engine.register(shelf.task(number, generations[number], choices), replace=True)


def expected_scores(shelf: Shelf, folder: Path, asked: list[Asked]) -> dict[tuple[str, str], tuple[float, ...]]:
    """By digest and text, from a backbone of its own with one task at a time in it."""
    backbone = load_backbone(str(folder))
    tokenizer = Engine(backbone).tokenizer
    found = {}
    for digest in {a.digest for a in asked if isinstance(a.outcome, tuple) and a.digest}:
        package = shelf.packages[digest]
        spec = package.manifest.task
        patch = sparsehub.patch.make_patch(backbone, package.delta)
        head = build_head(backbone, spec, package.head, tokenizer.pad_token_id)
        sparsehub.patch.apply_patch(backbone.arena, patch)
        with torch.inference_mode():
            for text in TEXTS:
                rows = encode(spec, tokenizer, [{"text": text}])
                batch = collate(tokenizer, rows)
                found[digest, text] = answers(spec, rows, head(batch, backbone.module(**batch)))[0].scores
        sparsehub.patch.restore_patch(backbone.arena, patch)
    return found


def test_nothing_is_lost_or_foreign_whatever_comes_goes_and_breaks(
    tiny_tasks: Any, shelf: Shelf, faults: Callable[[Engine], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = load_backbone(str(tiny_tasks.folder))
    budgets = Budgets(device_bytes=20 * 14_000, loaders=2)  # room for about twenty tasks
    engine = Engine(backbone, Limits(queue_rows=512), budgets=budgets, check_seconds=0.01)
    before, choices = backbone.arena.digest(), random.Random(5)
    for number in range(TASKS):
        engine.register(shelf.task(number, 0, choices))
    engine.start()
    done, third = threading.Event(), REQUESTS // 3
    churner = threading.Thread(target=churn, args=(engine, shelf, done))
    with monkeypatch.context():
        faults(engine)
        churner.start()
        with ThreadPoolExecutor(THREADS) as pool:
            first = list(pool.map(lambda seed: ask(engine, random.Random(seed)), range(third)))
            settled = memory()
            rest = list(pool.map(lambda seed: ask(engine, random.Random(seed)), range(third, REQUESTS)))
        grown = memory() - settled
        done.set()
        churner.join(20)
    monkeypatch.undo()
    engine.stop()
    asked = [one for found in (*first, *rest) for one in found]
    assert len(asked) == 2 * REQUESTS
    expected = expected_scores(shelf, tiny_tasks.folder, asked)
    answered = [one for one in asked if isinstance(one.outcome, tuple)]
    for one in answered:
        assert one.digest is not None and shelf.packages[one.digest].manifest.name == one.name
        assert one.outcome == pytest.approx(expected[one.digest, one.text], abs=1e-4)
    errors = {one.outcome for one in asked if isinstance(one.outcome, str)}
    allowed = ("UnknownTaskError", "QueueFullError", "HubError", "cancelled", "RequestError: the model failed")
    assert all(error.startswith(allowed) for error in errors), errors
    assert len(answered) > 0.6 * len(asked)
    assert backbone.arena.digest() == before and engine.arena.failures == 0
    assert all(status.references == 0 for status in engine.status())
    assert engine.usage.device_bytes <= budgets.device_bytes
    assert grown < 40, f"{grown:.0f} MiB more after the last two thirds of the requests"
