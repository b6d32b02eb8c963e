"""`make soak`: everything at once, for minutes. Moving versions, evictions, clients that err or hurry off, a catalogue
that is damaged now and then: nothing answered wrongly, no 5xx, memory flat, the arena exact."""

from __future__ import annotations

import gc
import json
import logging
import os
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from serving.catalog import Catalog, Entry, Target, change_catalog, changes, open_catalog
from sparsehub.engine import Budgets
from sparsehub.errors import SparsehubError
from sparsehub.hub import open_hub

SECONDS = float(os.environ.get("SPARSEHUB_SOAK_SECONDS", "120"))
TASKS, VERSIONS = ("first", "second", "third", "fourth"), ("1.0.0", "2.0.0")
TEXTS = ["the fox", "who wrote the book", "a bad ending", "angela merkel met the king of spain"]
pytestmark = pytest.mark.skipif(os.environ.get("HYPOTHESIS_PROFILE") != "soak", reason="minutes long: make soak")


def resident_bytes() -> int:
    gc.collect()
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmRSS"))


class Soak:
    """Clients and misfortunes, each a method that is called again and again by threads of its own."""

    def __init__(self, server: Any, hub: Path, where: Path, targets: dict[str, dict[str, Target]], expected: Any):
        self.server, self.hub, self.where, self.targets, self.expected = server, hub, where, targets, expected
        self.statuses: Counter[int] = Counter()
        self.wrong: list[str] = []
        self.end = time.monotonic() + SECONDS

    def repeat(self, act: Callable[[random.Random], None], seed: int) -> None:
        choices = random.Random(seed)
        while time.monotonic() < self.end:
            act(choices)

    def ask(self, choices: random.Random) -> None:
        texts = choices.choices(TEXTS, k=choices.randint(1, 6))
        response = self.server.post("/v1/classify", model=choices.choice(TASKS), input=texts)
        self.statuses[response.status_code] += 1
        body = response.json()
        if response.status_code >= 500:
            self.wrong.append(body["error"]["message"])
        for text, entry in zip(texts, body.get("data", ()), strict=False):
            if entry["probs"] != pytest.approx(self.expected[body["digest"], text], abs=1e-4):
                self.wrong.append(f"{body['task']}: {text}")

    def err(self, choices: random.Random) -> None:
        bodies = (
            {"model": "nobody", "input": "a"},
            {"model": "first", "input": ""},
            {"model": 5},
            {"model": "first+x*", "input": 1},
        )
        self.statuses[self.server.client.post("/v1/classify", json=choices.choice(bodies)).status_code] += 1

    def hurry_off(self, choices: random.Random) -> None:
        body = json.dumps({"model": choices.choice(TASKS), "input": TEXTS * 4}).encode()
        head = f"POST /v1/classify HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n"
        head += "Content-Type: application/json\r\n\r\n"
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.server.port), timeout=5) as connection:
            connection.sendall(head.encode() + body[: choices.randint(0, len(body))])
            time.sleep(choices.random() * 0.05)

    def move(self, choices: random.Random) -> None:
        task, version = choices.choice(TASKS), choices.choice(VERSIONS)
        target = self.targets[task][version]
        edits = (
            lambda c: changes.canary(c, task, target, choices.choice((5, 50))),
            lambda c: changes.promote(c, task),
            lambda c: changes.rollback(c, task),
            lambda c: changes.move(c, task, target),
            lambda c: changes.set_options(c, TASKS[0], pinned=choices.random() < 0.5),  # all would fill the budget
        )
        with suppress(SparsehubError):
            change_catalog(open_catalog(str(self.where)), choices.choice(edits))
            self.server.keeper.follower.look()
        time.sleep(0.05)

    def damage(self, choices: random.Random) -> None:
        """The catalogue, for a moment."""
        content = self.where.read_bytes()
        self.where.write_bytes(choices.choice((b"{", b"", content[: len(content) // 2])))
        with suppress(SparsehubError):
            self.server.keeper.follower.look()
        self.where.write_bytes(content)
        time.sleep(0.5)


def test_minutes_of_everything(
    new_server: Callable[..., Any], tiny_tasks: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("SPARSEHUB_CACHE", str(tmp_path / "cache"))
    hub, where, expected, targets = tmp_path / "hub", tmp_path / "catalog.json", {}, {}
    for number, (task, version) in enumerate((t, v) for t in TASKS for v in VERSIONS):
        package = tiny_tasks.write(task, labels=2 + number % 4, version=version, seed=70 + number)
        found, reference = open_hub(hub).publish(package), tiny_tasks.reference(package)
        targets.setdefault(task, {})[version] = Target(version, found.digest)
        expected |= {(found.digest, text): reference(text) for text in TEXTS}
    where.write_bytes(Catalog(1, {task: Entry(targets[task]["1.0.0"]) for task in TASKS}).to_bytes())
    with new_server(start=True, catalog=str(where), hub=str(hub), budgets=Budgets(60_000)) as server:
        it = Soak(server, hub, where, targets, expected)
        acts = [it.ask] * 4 + [it.err, it.hurry_off, it.move, it.damage]
        with ThreadPoolExecutor(len(acts)) as pool:
            running = [pool.submit(it.repeat, act, seed) for seed, act in enumerate(acts)]
            threading.Event().wait(SECONDS / 3)
            before = resident_bytes()
            for one in running:
                one.result(SECONDS + 120)
        grown = resident_bytes() / before
        usage, arena = server.engine.usage, server.engine.arena
        found = (
            f"{dict(it.statuses)}, memory x {grown:.3f}, {usage.evictions} evictions, {arena.checks} looks at the arena"
        )
        logging.getLogger("soak").warning(found)
        assert it.wrong == [] and arena.failures == 0
        assert it.statuses[200] > 100 and max(it.statuses) < 500
        assert grown < 1.1 and usage.evictions > 10
        server.until(lambda: server.engine.waiting == 0)
