"""The scheduler: which rows run next. Bounded queues, batches by a token budget, nobody starved; holds no torch.

Every batch is led by the row whose turn it is (`fair_share.py`): of the tenant that was given least, of that tenant's
task that was given least, the oldest. With it go the rows of all who want less than their share, so that a lone row
waits for the batch that runs and no other, however much others have queued. The rest of the batch are rows of the same
key, or all that may share its lane, those of most similar length first, as many as make a row cheapest; and the rows of
the same texts, which share their layers.
"""

from __future__ import annotations

import heapq
import math
import threading
import time
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from sparsehub.engine.fair_share import SOON, FairShare, Tenant, most_of
from sparsehub.engine.shared_texts import with_same_texts
from sparsehub.engine.waiting_rows import Item, Line, WaitingRows
from sparsehub.errors import QueueFullError, StoppingError, UsageError

_SMOOTHING = 0.2  # weight of the newest batch in the running throughput
MOST_HALVINGS = 4  # how many sizes of a batch are compared: all rows, half of them, a quarter, ...
_FIRST_GUESS = 1.0  # seconds until a retry, before any throughput was measured
_PASSED = 4  # batches in which younger rows may overtake the oldest one of their queue, for their length
_ALIKE = 2  # times as long or as short as the row that leads: beyond it a row is not taken along for fairness alone


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
        self._queues, self._shares = WaitingRows(), FairShare()
        self._closed = False
        self._tokens_per_second = 0.0

    @property
    def waiting(self) -> int:
        """Rows in the queue."""
        return self._queues.rows.total()

    def submit(self, items: Sequence[Item]) -> None:
        """Queue all of `items`, which are of one tenant, or none; raises `QueueFullError`, also where they would wait
        longer than they may."""
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
            now = time.monotonic()
            if self._refusal(items, now) is not None:
                self._queues.drop_dead(now)
            if (refusal := self._refusal(items, now)) is not None:
                raise refusal
            for item in items:
                item.arrived = time.monotonic()  # under the lock: a queue is in the order of its arrivals
                self._queues.add(item)
            self._ready.notify()

    def next_batch(self, timeout: float | None = None) -> list[Item]:
        """The next batch, its futures running; an empty list after `timeout` seconds or when closed and drained."""
        lane_of = self._lanes.lane_of
        end = None if timeout is None else time.monotonic() + timeout
        with self._ready:
            while True:
                self._queues.drop_dead(time.monotonic())
                lanes = {line: lane for line in self._queues if (lane := lane_of(line[1])) is not None}
                if lanes:
                    if batch := self._take(self._lead(lanes), lanes):
                        return batch
                    continue  # every row of it was cancelled between the look and the take
                left = None if end is None else end - time.monotonic()
                if self._closed or (left is not None and left <= 0):
                    return []
                self._ready.wait(left)

    def note(self, tokens: int, seconds: float) -> None:
        """Learn how fast batches run; how long rows will wait is predicted from it."""
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
            lines = [line for line in self._queues if only is None or line[1] in only]
            items = [item for line in lines for item in self._queues.remove(line, set(map(id, self._queues[line])))]
        for item in items:
            if item.future.set_running_or_notify_cancel():
                item.future.set_exception(error)

    def _lead(self, lines: Collection[Line]) -> Item:
        """The row whose turn it is. lines: queues whose rows can run."""
        most = self._limits.batch_tokens
        self._shares.advance(line[0].tenant for line in lines)
        wanted = {line[0].tenant: float(min(self._queues.tokens[line[0].tenant], most)) for line in lines}
        return self._shares.next((self._queues[line][0] for line in lines), wanted)

    def _take(self, lead: Item, lanes: dict[Line, Hashable]) -> list[Item]:
        """The row whose turn it is and those that go best with it, within the budget; by key, in order of arrival."""
        lane = lanes[lead.flow, lead.key]
        lines = sorted((line for line in lanes if lanes[line] == lane), key=lambda line: line[1] != lead.key)
        every = [item for line in lines for item in self._queues[line] if item is not lead]
        due = self._due(lead, every, left := self._shares_of_batch(lead, {line[0].tenant for line in lanes}))
        rest = self._unhurried(lead, every, due)
        candidates = []
        if all(item.key == lead.key for item in due):
            candidates += self._batches(lead, due, [item for item in rest if item.key == lead.key], left)
        if any(line[1] != lead.key for line in lines):
            candidates += self._batches(lead, due, rest, left)
        if every:
            candidates = self._joined(candidates, every)
        chosen = {id(item) for item in min(candidates, key=self._costs.cost_per_token)}
        return [item for line in lines for item in self._run(line, chosen)]

    def _joined(self, candidates: list[list[Item]], every: Sequence[Item]) -> list[list[Item]]:
        """Batches that could be taken, each with the rows of its texts."""
        shares = {key: self._lanes.own_share(key) for key in {item.key for item in every}}
        if min(shares.values()) >= 1.0:
            return candidates
        rows, tokens = self._limits.batch_rows, self._limits.batch_tokens
        return [with_same_texts(batch, every, shares, rows, tokens) for batch in candidates]

    def _shares_of_batch(self, lead: Item, tenants: Collection[Tenant]) -> dict[Tenant, float]:
        """Tokens of the batch that belong to each tenant. tenants: of which a row can run."""
        whole = min(self._limits.batch_tokens, self._limits.batch_rows * lead.length)
        share = whole / sum(tenant.weight for tenant in tenants)
        return {tenant: max(0.0, share - self._shares.ahead(tenant)) * tenant.weight for tenant in tenants}

    def _due(self, lead: Item, every: Sequence[Item], left: Mapping[Tenant, float]) -> list[Item]:
        """The rows that go along because all that their tenant has waiting is within its share of this batch.

        every: the other rows of the lane; left: of each tenant's share. With one tenant there is nothing to share.
        """
        if len(left) == 1:
            return []
        rows, tokens = self._queues.rows, self._queues.tokens
        light = {tenant for tenant in left if tokens[tenant] <= left[tenant] or (left[tenant] and rows[tenant] == 1)}
        alike = range(lead.length // _ALIKE, lead.length * _ALIKE + 1)
        return [item for item in every if item.flow.tenant in light and item.length in alike]

    def _unhurried(self, lead: Item, every: Sequence[Item], due: Sequence[Item]) -> list[Item]:
        """The rows that may fill what is left of a batch. The oldest row of a queue is not overtaken for ever."""
        passed = {line for line, queue in self._queues.items() if queue[0] is not lead and queue[0].passed >= _PASSED}
        already = {id(item) for item in due}
        return [item for item in every if id(item) not in already and (item.flow, item.key) not in passed]

    def _batches(
        self, lead: Item, due: Sequence[Item], more: Sequence[Item], left: Mapping[Tenant, float]
    ) -> list[list[Item]]:
        """Batches that could be taken: all that fit, half of them, and so on, but never without what is due."""
        rows, owed = self._limits.batch_rows, dict(left)
        least, nearest = self._fill([lead], _nearest(lead, due, rows)), _nearest(lead, more, rows)
        for item in least:
            owed[item.flow.tenant] -= item.tokens
        first, then = list[Item](), list[Item]()
        for item in nearest:  # those within their tenant's share, and after them what there is
            (first if owed[item.flow.tenant] > 0 else then).append(item)
            owed[item.flow.tenant] -= item.tokens
        return _beginnings(self._fill(least, [*first, *then]), len(least))

    def _fill(self, begun: Sequence[Item], more: Sequence[Item]) -> list[Item]:
        """What a batch has begun with, and as much of `more` as goes into the budget."""
        chosen = list(begun)
        length, sequences = max(item.length for item in chosen), sum(item.sequences for item in chosen)
        for item in more:
            longest, total = max(length, item.length), sequences + item.sequences
            if len(chosen) >= self._limits.batch_rows:
                break
            if longest * total <= self._limits.batch_tokens:
                length, sequences = longest, total
                chosen.append(item)
        return chosen

    def _run(self, line: Line, chosen: Collection[int]) -> list[Item]:
        """Take chosen rows out of a queue, and charge for them; without those that were cancelled meanwhile."""
        taken = [item for item in self._queues.remove(line, chosen) if item.future.set_running_or_notify_cancel()]
        self._shares.charge(line[0], sum(item.tokens for item in taken))
        if line[0].tenant not in self._queues.rows:
            self._shares.forget(line[0].tenant)
        return taken

    def _refusal(self, items: Sequence[Item], now: float) -> QueueFullError | None:
        """Why these rows cannot be queued: no room, or none for their tenant, or it would take too long."""
        if not items:
            return None
        tenant, waiting = items[0].flow.tenant, self._queues
        mine, free = waiting.rows[tenant], self._limits.queue_rows - self.waiting
        if len(items) > free:
            return _full(f"the queue is full: {self.waiting} rows wait", self._seconds(waiting.tokens.total()) / 2)
        if mine and mine + len(items) > most_of(tenant, waiting.rows, mine, free):
            problem = f"{mine} rows of {tenant.name} wait, and the rest of the queue is for others"
            return _full(problem, self._seconds(self._before(tenant, 0)) / 2)
        seconds = self._seconds(self._before(tenant, sum(item.tokens for item in items)), unknown=0.0)
        deadline = min((item.deadline for item in items if item.deadline is not None), default=math.inf)
        # Where nothing waits it is taken: a wrong prediction is not to keep out what would correct it.
        if seconds <= max(allowed := deadline - now, SOON) or not self.waiting:
            return None
        return _full(f"these rows would wait {seconds:.0f} s, and may wait {allowed:.0f}", seconds - allowed)

    def _before(self, tenant: Tenant, more: int) -> float:
        """Tokens that run until all of a tenant's have, at most; `more` of its own among them."""
        tokens = self._queues.tokens
        weights = sum(other.weight for other in {*tokens, tenant})
        return min(tokens.total() + more, (tokens[tenant] + more) * weights / tenant.weight)

    def _seconds(self, tokens: float, unknown: float = 2 * _FIRST_GUESS) -> float:
        """What they take. unknown: the answer before any batch has run."""
        return tokens / self._tokens_per_second if self._tokens_per_second else unknown


def _full(problem: str, seconds: float) -> QueueFullError:
    wait = max(0.1, round(seconds, 1))
    return QueueFullError(problem, retry_after=wait, fix="send the request again after the given time")


def _beginnings(rows: list[Item], least: int) -> list[list[Item]]:
    """All rows, the first half of them, and so on: the last ones are least like the first, and make the padding."""
    sizes = {max(len(rows) >> halvings, least): None for halvings in range(MOST_HALVINGS)}
    return [rows[:size] for size in sizes]


def _nearest(lead: Item, items: Sequence[Item], count: int) -> list[Item]:
    """Of each tenant's items the `count` of most similar length, the nearest first; of equal ones those of the same
    key, then the older."""

    def distance(item: Item) -> tuple[int, bool, float]:
        return abs(item.length - lead.length), item.key != lead.key, item.arrived

    own: dict[str, list[Item]] = {}
    for item in items:
        own.setdefault(item.flow.tenant.name, []).append(item)
    return sorted((item for each in own.values() for item in heapq.nsmallest(count, each, distance)), key=distance)
