"""Many requests over many tasks from many threads, a third of them cancelled at some point: none lost, none foreign.

`make soak` runs the long form: 1,000 requests over 50 tasks.
"""

from __future__ import annotations

import random
import threading

import pytest

from sparsehub.backbone import load_backbone
from sparsehub.engine import Engine, GenerationLimits, Sampling, Task
from sparsehub.errors import CancelledError, QueueFullError
from sparsehub.package import read_package
from tests.support import SOAK

pytestmark = pytest.mark.soak
REQUESTS, TASKS, CLIENTS = (1000, 50, 20) if SOAK else (80, 6, 8)
LONGEST = 20
PROMPTS = ["SAILOR:\n", "CLERK:\nItem: the tide", "POET:\nO north wind, that", "Why?", "BAKER:\nWarm bread, " * 2]


class Client(threading.Thread):
    """Asks one thing after another, and lets go of some of them. outcomes: of every request, what was wrong or how it
    ended."""

    def __init__(self, engine: Engine, wanted: dict[tuple[str, str], list[int]], requests: int, seed: int):
        super().__init__()
        self.engine, self.wanted, self.requests = engine, wanted, requests
        self.draw, self.outcomes = random.Random(seed), []

    def run(self) -> None:
        for _ in range(self.requests):
            self.outcomes.append(self.ask(*self.draw.choice(sorted(self.wanted)), self.draw.randint(1, LONGEST)))

    def ask(self, name: str, prompt: str, tokens: int) -> str:
        leaves = self.draw.randint(0, tokens) if self.draw.random() < 0.34 else None
        while True:
            try:
                generation = self.engine.generate(name, prompt, Sampling(max_tokens=tokens))
                break
            except QueueFullError:
                threading.Event().wait(0.01)
        expected = self.wanted[name, prompt][:tokens]
        if leaves == 0:
            generation.cancel()
        try:
            for _ in generation.pieces():
                if leaves is not None and len(generation.tokens) >= leaves:
                    generation.cancel()
            done = list(generation.result(60).tokens)
            return "whole" if done == expected else f"foreign: {name} {prompt!r} said {done}, not {expected}"
        except CancelledError:
            said = list(generation.tokens)
            return "left" if said == expected[: len(said)] else f"foreign: {name} {prompt!r} said {said}"


def test_nothing_is_lost_or_foreign_and_the_cache_is_empty_in_the_end(speakers, says):
    limits = GenerationLimits(cache_tokens=640, batch_tokens=64, sequences=24, waiting=12)
    engine = Engine(load_backbone(str(speakers.folder)), generation=limits, check_seconds=0.2)
    packages = {f"s{i}": speakers.write(f"s{i}", "text-generation", seed=i, scale=0.3) for i in range(TASKS)}
    for name, path in packages.items():
        package = read_package(path)
        engine.register(Task(name, "1.0.0", package.digest, lambda package=package: package))
    ids = {prompt: engine.tokenizer(prompt)["input_ids"] for prompt in PROMPTS}
    wanted = {(name, p): says(packages[name], ids[p], LONGEST) for name in packages for p in PROMPTS}
    clients = [Client(engine, wanted, REQUESTS // CLIENTS, seed) for seed in range(CLIENTS)]
    engine.start()
    for client in clients:
        client.start()
    for client in clients:
        client.join(300)
    assert not any(client.is_alive() for client in clients)
    outcomes = [outcome for client in clients for outcome in client.outcomes]
    assert [outcome for outcome in outcomes if outcome.startswith("foreign")] == []
    assert len(outcomes) == REQUESTS // CLIENTS * CLIENTS
    assert outcomes.count("left") > REQUESTS / 10 and outcomes.count("whole") > REQUESTS / 3
    engine.stop()
    usage = engine.generator.usage()
    assert (usage.running, usage.waiting, usage.pages) == (0, 0, 0)
    assert all(status.references == 0 for status in engine.status())
    assert engine.arena.check_all() and engine.arena.failures == 0
