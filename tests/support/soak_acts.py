"""The clients and the misfortunes of `test_soak`: each is a method that a thread of its own calls again and again."""

from __future__ import annotations

import json
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving.catalog import CatalogTarget, change_catalog, changes, open_catalog
from sparsehub.errors import SparsehubError
from sparsehub.hub.cache import PackageCache
from tests.support.hostile_requests import attack
from tests.support.soak_faults import FAULTS, PASS, Disk, Proxy, flipped_bit

TASKS, VERSIONS = ("first", "second", "third", "fourth"), ("1.0.0", "2.0.0")
TEXTS = ["the fox", "who wrote the book", "a bad ending", "angela merkel met the king of spain"]
STILL = 3.0  # seconds between two beats of a clock that beats twice a second: the whole process was stopped
LINGER = 8.0  # seconds that a fault is still felt: a load that began in it may try on for so long
LATE = 20.0  # seconds beyond the stated bound in which a flipped bit must be found: the machine may be busy
INJECTED = {"UnreachableError", "IntegrityError", "HubError", "EngineError"}  # codes of the 503s that faults explain
Choices = random.Random


@dataclass
class World:
    """What is served, and what it leans on. targets: by task and version; expected: by digest and text."""

    server: Any
    where: Path
    cache: Path
    targets: Mapping[str, Mapping[str, CatalogTarget]]
    expected: Mapping[tuple[str, str], list[float]]
    line: Proxy
    disk: Disk | None


@dataclass
class Soak:
    """seconds: for how long; statuses: of all answers; wrong: what must not be; acts: how often each was done."""

    world: World
    seconds: float
    statuses: Counter[int] = field(default_factory=Counter)
    acts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.over = threading.Event()
        self._faults, self._fault_ended, self._lock = 0, -LINGER, threading.Lock()
        self._damaged, self._repaired = False, -LINGER
        self._beat, self._stood_still = time.monotonic(), -LINGER

    def repeat(self, act: Callable[[Choices], None], seed: int) -> None:
        choices = random.Random(seed)
        while not self.over.is_set():
            began = time.monotonic()
            try:
                act(choices)
            except (httpx.TransportError, TimeoutError):
                if not self._was_still(began):
                    raise
            self.acts[act.__name__] += 1

    def beat(self, choices: Choices) -> None:
        """Notice that the machine slept or that somebody stopped this process: what is late then has that reason."""
        now = time.monotonic()
        if now - self._beat > STILL:
            self._stood_still = now
        self._beat = now
        self.over.wait(0.5)

    # clients

    def ask(self, choices: Choices) -> None:
        texts, began = choices.choices(TEXTS, k=choices.randint(1, 6)), time.monotonic()
        response = self.world.server.post("/v1/classify", model=choices.choice(TASKS), input=texts)
        self._judge(response, texts, began)

    def err(self, choices: Choices) -> None:
        bodies = (
            {"model": "nobody", "input": "a"},
            {"model": "../../etc/passwd", "input": "a"},
            {"model": "first", "input": ""},
            {"model": 5},
            {"model": "first+x*", "input": 1},
        )
        began = time.monotonic()
        self._judge(self.world.server.client.post("/v1/classify", json=choices.choice(bodies)), [], began)

    def dawdle(self, choices: Choices) -> None:
        """A client whose request takes its time to come."""
        body, began = request_of(choices), time.monotonic()
        with self._connected() as connection:
            for start in range(0, len(body), 60):
                connection.sendall(body[start : start + 60])
                time.sleep(0.2)
            status = int(connection.recv(1 << 16).split()[1])
        self._count(status, "", began)

    def hurry_off(self, choices: Choices) -> None:
        """A client that leaves at any moment."""
        body = request_of(choices)
        with suppress(OSError), self._connected() as connection:
            connection.sendall(body[: choices.randint(0, 2 * len(body))])
            time.sleep(choices.random() * 0.05)

    def attack(self, choices: Choices) -> None:
        """A client whose requests are to hold everybody up: their answer is a refusal, whatever it says."""
        began = time.monotonic()
        status = attack(self.world.server.port, choices)
        self._count(status, "", began)
        if status == 200:
            self.wrong.append("an attack was answered")
        self.over.wait(choices.uniform(0, 0.5))

    # misfortunes

    def move(self, choices: Choices) -> None:
        """Versions: canaries, promotions, rollbacks, reloads in place."""
        task = choices.choice(TASKS)
        target = self.world.targets[task][choices.choice(VERSIONS)]
        edits = (
            lambda c: changes.canary(c, task, target, choices.choice((5, 50))),
            lambda c: changes.promote(c, task),
            lambda c: changes.rollback(c, task),
            lambda c: changes.move(c, task, target),
            lambda c: changes.set_options(c, TASKS[0], pinned=choices.random() < 0.5),  # all would fill the budget
        )
        self._change(choices.choice(edits))
        self.over.wait(0.05)

    def reload(self, choices: Choices) -> None:
        """A task goes and comes back; meanwhile it is 404."""
        task, entry = choices.choice(TASKS[1:]), []
        self._change(lambda c: (entry.append(c.tasks[task]), changes.remove(c, task))[1])
        self.over.wait(0.2)
        if entry:
            self._change(lambda c: changes.add(c, task, entry[-1]))
        self.over.wait(3)

    def damage(self, choices: Choices) -> None:
        """The catalogue, for a moment. Who changes it meanwhile fails, and what he wrote before is put back."""
        with self._lock:
            content = self.world.where.read_bytes()
            self.world.where.write_bytes(choices.choice((b"{", b"", content[: len(content) // 2])))
            with suppress(SparsehubError):
                self.world.server.reconciler.follower.look()
            self.world.where.write_bytes(content)
        self.over.wait(0.5)

    def forget(self, choices: Choices) -> None:
        """The cache of packages: what is evicted has to be fetched again."""
        self._empty_cache()
        self.over.wait(1)

    def spoil_the_hub(self, choices: Choices) -> None:
        """It hangs, speaks garbage, sends other bytes than it promised, or breaks off."""
        with self._fault():
            self.world.line.mode = mode = choices.choice(FAULTS)
            self._empty_cache()
            self.over.wait(choices.uniform(1, 4))
            self.world.line.mode = PASS
        self.acts[mode] += 1
        self.over.wait(choices.uniform(15, 20))

    def fill_the_disk(self, choices: Choices) -> None:
        """With nothing in the cache, and no room to put it there."""
        with self._fault():
            self._empty_cache()
            with self.world.disk.full():
                self.over.wait(choices.uniform(0.5, 2))
        self.over.wait(choices.uniform(15, 20))

    def flip_a_bit(self, choices: Choices) -> None:
        """Of the backbone's weights. Answers may be wrong until it is found, within the stated time, and no longer."""
        arena = self.world.server.engine.arena
        bound = time.monotonic() + arena.bound_seconds + LATE
        with self._fault():
            self._damaged = True
            with flipped_bit(self.world.server.engine, choices) as right:
                while not right() and time.monotonic() < bound:
                    time.sleep(0.05)
                if not right():
                    self.wrong.append(f"a flipped bit was not found in {arena.bound_seconds + LATE:.0f} s")
            self._damaged, self._repaired = False, time.monotonic()
        self.over.wait(choices.uniform(20, 30))

    # what is right

    @contextmanager
    def _fault(self) -> Iterator[None]:
        self._faults += 1
        try:
            yield
        finally:
            self._fault_ended = time.monotonic()
            self._faults -= 1

    def _judge(self, response: httpx.Response, texts: list[str], began: float) -> None:
        body = response.json()
        error = body.get("error", {})
        self._count(response.status_code, error.get("code"), began, error.get("message", ""))
        if response.status_code == 503 and not response.headers.get("retry-after", "").isdigit():
            self.wrong.append("a 503 that does not say when to come back")
        if response.status_code == 200 and response.headers["x-sparsehub-digest"] != body["digest"]:
            self.wrong.append("two digests in one answer")
        for text, entry in zip(texts, body.get("data", ()), strict=response.status_code == 200):
            if self._may_be_wrong(began):
                continue
            if entry.get("probs") != pytest.approx(self.world.expected[body["digest"], text], abs=1e-4):
                self.wrong.append(f"{body['task']}: {text}")

    def _may_be_wrong(self, began: float) -> bool:
        """Whether a weight was damaged, and not found yet, while an answer was made that was asked for at `began`."""
        return self._damaged or self._repaired > began

    def _count(self, status: int, code: str | None, began: float, message: str = "") -> None:
        """A 5xx is right only where it is a 503 that an injected fault explains."""
        self.statuses[status] += 1
        injected = self._faults > 0 or self._fault_ended + LINGER > began
        explained = status == 503 and injected and (not message or code in INJECTED)
        if status >= 500 and not explained and not self._was_still(began):
            self.wrong.append(f"{status} {code}: {message}")

    def _was_still(self, began: float) -> bool:
        """Whether the process stood still after a moment, or so shortly before that it is still behind."""
        return time.monotonic() - self._beat > STILL or self._stood_still + LINGER > began

    def _change(self, edit: Callable[[Any], Any]) -> None:
        with suppress(SparsehubError, KeyError):
            with self._lock:
                change_catalog(open_catalog(str(self.world.where)), edit)
            self.world.server.reconciler.follower.look()

    def _empty_cache(self) -> None:
        PackageCache(self.world.cache).shrink(0)

    def _connected(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.world.server.port), timeout=60)


def request_of(choices: Choices) -> bytes:
    body = json.dumps({"model": choices.choice(TASKS), "input": TEXTS * 4}).encode()
    head = f"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + b"Content-Type: application/json\r\n\r\n" + body
