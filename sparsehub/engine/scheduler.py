"""The scheduler: which rows run next. Bounded queues, batches by a token budget, no task starved; holds no torch.

The oldest row that can run is always in the next batch, so a row waits at most for the rows that came before it,
however popular another task is. The rest of the batch are rows of the same key, or all that may share its lane, those
of most similar length first, as many as make a row cheapest; and the rows of the same texts, which share their layers.
"""

from __future__ import annotations

import heapq
import threading
import time
from collections.abc import Collection, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol

from sparsehub.engine.shared_texts import with_same_texts
from sparsehub.errors import CancelledError, QueueFullError, StoppingError, UsageError

_SMOOTHING = 0.2  # weight of the newest batch in the running throughput
MOST_HALVINGS = 4  # how many sizes of a batch are compared: all rows, half of them, a quarter, ...
_FIRST_GUESS = 1.0  # seconds until a retry, before any throughput was measured


@dataclass(frozen=True)
class Limits:
    """How large the queue and a batch may get; given to `Engine`."""

    queue_rows: int = 4096  # rows that may wait
    batch_tokens: int = 4096  # of one batch, padding included
    batch_rows: int = 64

    def __post_init__(self) -> None:
        for name in ("queue_rows", "batch_tokens", "batch_rows"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1", found=getattr(self, name))


@dataclass(eq=False)
class Item:
    """One row that waits. Its answer or its error is set on `future`."""

    key: Hashable  # rows of one key may always share a batch
    length: int  # tokens of its longest sequence
    payload: Any  # what is run; the scheduler does not look at it
    sequences: int = 1
    deadline: float | None = None  # seconds on the monotonic clock; a row that still waits then gets an error
    future: Future[Any] = field(default_factory=Future)
    arrived: float = 0.0  # when it was queued, on the same clock
    text: Hashable = None  # equal for rows of the same token ids and mask; None for a row that shares nothing

    @property
    def tokens(self) -> int:
        """Tokens of all its sequences, each as long as the longest."""
        return self.length * self.sequences


class Lanes(Protocol):
    """Which rows may share a batch: those whose keys have one lane. `LanePolicy` decides it for an engine."""

    def lane_of(self, key: Any) -> Hashable | None:
        """The lane of a key; None while its rows cannot run. Asked whenever a batch is made."""

    def own_share(self, key: Any) -> float:
        """Which part of a row of a key runs for it alone in a batch that has its text already: 0 to 1."""


class BatchCosts(Protocol):
    """What a batch costs. `BatchPlanner` predicts it for an engine."""

    def cost_per_token(self, batch: Sequence[Item]) -> float:
        """The cost of a batch that could be taken; of several the cheapest one is."""


class Scheduler:
    """Queues the rows of requests, and makes batches of them. Thread-safe: `InputProcessor` submits in many threads,
    `ModelLoop` takes batches in one. Call `wake` when a lane has changed."""

    def __init__(self, limits: Limits, lanes: Lanes, costs: BatchCosts):
        self._limits, self._lanes, self._costs = limits, lanes, costs
        self._ready = threading.Condition()
        self._queues: dict[Hashable, list[Item]] = {}  # by key, oldest first; no empty lists
        self._waiting = 0
        self._closed = False
        self._tokens_per_second = 0.0

    @property
    def waiting(self) -> int:
        """Rows in the queue."""
        return self._waiting

    def submit(self, items: Sequence[Item]) -> None:
        """Queue all of `items` or none; raises `QueueFullError`."""
        with self._ready:
            if self._closed:
                raise StoppingError
            if len(items) > self._limits.queue_rows:
                raise UsageError(
                    "a request holds more rows than the queue",
                    found=len(items),
                    expected=f"at most {self._limits.queue_rows}",
                    fix="send fewer rows a request",
                )
            if self._waiting + len(items) > self._limits.queue_rows:
                self._drop_dead(time.monotonic())
            if self._waiting + len(items) > self._limits.queue_rows:
                raise QueueFullError(
                    f"the queue is full: {self._waiting} rows wait",
                    retry_after=self._retry_after(),
                    fix="send the request again after the given time",
                )
            for item in items:
                item.arrived = time.monotonic()  # under the lock: a queue is in the order of its arrivals
                self._queues.setdefault(item.key, []).append(item)
            self._waiting += len(items)
            self._ready.notify()

    def next_batch(self, timeout: float | None = None) -> list[Item]:
        """The next batch, its futures running; an empty list after `timeout` seconds or when closed and drained."""
        lane_of = self._lanes.lane_of
        end = None if timeout is None else time.monotonic() + timeout
        with self._ready:
            while True:
                self._drop_dead(time.monotonic())
                lanes = {key: lane for key in self._queues if (lane := lane_of(key)) is not None}
                if lanes:
                    batch = self._take(min(lanes, key=lambda key: self._queues[key][0].arrived), lanes)
                    if batch:
                        return batch
                    continue  # every row of it was cancelled between the look and the take
                left = None if end is None else end - time.monotonic()
                if self._closed or (left is not None and left <= 0):
                    return []
                self._ready.wait(left)

    def note(self, tokens: int, seconds: float) -> None:
        """Learn how fast batches run; `QueueFullError.retry_after` is made of it."""
        speed = tokens / max(seconds, 1e-6)
        known = self._tokens_per_second
        self._tokens_per_second = speed if not known else known + _SMOOTHING * (speed - known)

    def wake(self) -> None:
        """Look at the lanes again: a key that could not run may be able to now."""
        with self._ready:
            self._ready.notify_all()

    def close(self) -> None:
        """Take no more rows; what waits can still be taken."""
        with self._ready:
            self._closed = True
            self._ready.notify_all()

    def fail(self, error: BaseException, only: Collection[Hashable] | None = None) -> None:
        """Answer the rows that wait with `error`: all of them, or only those of some keys."""
        with self._ready:
            keys = [key for key in self._queues if only is None or key in only]
            items = [item for key in keys for item in self._queues[key]]
            for key in keys:
                self._keep(key, [])
        for item in items:
            if item.future.set_running_or_notify_cancel():
                item.future.set_exception(error)

    def _take(self, key: Hashable, lanes: dict[Hashable, Hashable]) -> list[Item]:
        """The oldest row of a key and the rows that go best with it, within the budget; by key, in order of arrival."""
        oldest = self._queues[key][0]
        neighbours = [k for k in self._queues if k != key and lanes.get(k) == lanes[key]]
        own = self._fill(oldest, self._queues[key][1:])
        candidates = _beginnings(own)
        every = [item for k in (key, *neighbours) for item in self._queues[k] if item is not oldest]
        if neighbours:
            candidates += _beginnings(self._fill(oldest, every))
        if every:
            candidates = self._joined(candidates, every)
        chosen = {id(item) for item in min(candidates, key=self._costs.cost_per_token)}
        return [item for k in (key, *neighbours) for item in self._remove(k, chosen)]

    def _joined(self, candidates: list[list[Item]], every: Sequence[Item]) -> list[list[Item]]:
        """Batches that could be taken, each with the rows of its texts."""
        shares = {key: self._lanes.own_share(key) for key in {item.key for item in every}}
        if min(shares.values()) >= 1.0:
            return candidates
        rows, tokens = self._limits.batch_rows, self._limits.batch_tokens
        return [with_same_texts(batch, every, shares, rows, tokens) for batch in candidates]

    def _fill(self, oldest: Item, more: Sequence[Item]) -> list[Item]:
        """The oldest row and those of most similar length, the nearest first, as far as the budget goes."""
        length, sequences, chosen = oldest.length, oldest.sequences, [oldest]
        for item in _nearest(oldest, more, self._limits.batch_rows):
            longest, total = max(length, item.length), sequences + item.sequences
            if len(chosen) >= self._limits.batch_rows:
                break
            if longest * total <= self._limits.batch_tokens:
                length, sequences = longest, total
                chosen.append(item)
        return chosen

    def _remove(self, key: Hashable, chosen: set[int]) -> list[Item]:
        """Take chosen rows out of a queue; without those that were cancelled meanwhile."""
        queue = self._queues[key]
        taken = [item for item in queue if id(item) in chosen]
        if taken:
            self._keep(key, [item for item in queue if id(item) not in chosen])
        return [item for item in taken if item.future.set_running_or_notify_cancel()]

    def _drop_dead(self, now: float) -> None:
        """Forget cancelled rows and answer those whose deadline has passed."""
        for key, queue in list(self._queues.items()):
            alive = [item for item in queue if not _is_dead(item, now)]
            if len(alive) < len(queue):
                self._keep(key, alive)

    def _keep(self, key: Hashable, queue: list[Item]) -> None:
        """Put the rows that are left in the place of a key's queue."""
        self._waiting -= len(self._queues[key]) - len(queue)
        if queue:
            self._queues[key] = queue
        else:
            del self._queues[key]

    def _retry_after(self) -> float:
        """Seconds until half of what waits has run, as far as one can tell."""
        if not self._tokens_per_second:
            return _FIRST_GUESS
        tokens = sum(item.tokens for queue in self._queues.values() for item in queue)
        return max(0.1, round(tokens / self._tokens_per_second / 2, 1))


def _is_dead(item: Item, now: float) -> bool:
    """Whether a waiting row was cancelled or has passed its deadline; the latter gets an error."""
    if item.future.cancelled():
        item.future.set_running_or_notify_cancel()  # without it, `concurrent.futures.wait` would wait on
        return True
    if item.deadline is None or item.deadline > now:
        return False
    if item.future.set_running_or_notify_cancel():
        item.future.set_exception(CancelledError("the deadline passed while the row was waiting"))
    return True


def _beginnings(rows: list[Item]) -> list[list[Item]]:
    """All rows, the first half of them, and so on: the last ones are least like the oldest, and make the padding."""
    sizes = [len(rows) >> halvings for halvings in range(MOST_HALVINGS)]
    return [rows[:size] for size in sizes if size]


def _nearest(oldest: Item, items: Sequence[Item], count: int) -> list[Item]:
    """The items of most similar length, the nearest first; of equal ones those of the same key, then the older."""
    return heapq.nsmallest(
        count, items, key=lambda item: (abs(item.length - oldest.length), item.key != oldest.key, item.arrived)
    )
