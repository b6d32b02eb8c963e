"""The scheduler: which rows run next. Bounded queues, batches by a token budget, nobody starved; holds no torch.

Every batch is led by the row whose turn it is (`fair_share.py`): of the tenant that was given least, of that tenant's
task that was given least, the oldest. With it go the rows of all who want less than their share, so that a lone row
waits for the batch that runs and no other, however much others have queued; nothing else goes with them, as long as
that loses little. The rest of a batch are rows of the same key, or all that may share its lane, those of most similar
length first, as many as make a row cheapest; and the rows of the same texts, which share their layers.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from sparsehub.engine.batch_choice import BatchChoice, Lanes
from sparsehub.engine.fair_share import ANYBODYS, SOON, FairShare, Flow, HasteBudget, Tenant, most_of
from sparsehub.engine.shared_texts import with_same_texts
from sparsehub.errors import CancelledError, QueueFullError, StoppingError, UsageError

_SMOOTHING = 0.2  # weight of the newest batch in the running throughput
_FIRST_GUESS = 2.0  # seconds that all takes which waits, before any throughput was measured
_PASSED = 4  # batches in which younger rows may overtake the oldest one of their queue, for their length


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


Line = tuple[Flow, Hashable]  # whose rows a queue holds, and their key


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
    flow: Flow = ANYBODYS
    passed: int = 0  # batches that took younger rows of its queue

    @property
    def tokens(self) -> int:
        """Tokens of all its sequences, each as long as the longest."""
        return self.length * self.sequences


class BatchCosts(Protocol):
    """What a batch costs. `BatchPlanner` predicts it for an engine."""

    def cost_per_token(self, batch: Sequence[Item]) -> float:
        """The cost of a batch that could be taken; of several the cheapest one is."""


class WaitingRows(Mapping[Line, Sequence[Item]]):
    """Queues of rows, oldest first, none of them empty. Not thread-safe: the scheduler's lock guards it."""

    def __init__(self) -> None:
        self._queues: dict[Line, list[Item]] = {}
        self.rows: Counter[Tenant] = Counter()  # that wait
        self.tokens: Counter[Tenant] = Counter()

    def __getitem__(self, line: Line) -> Sequence[Item]:
        return self._queues[line]

    def __iter__(self) -> Iterator[Line]:
        yield from self._queues

    def __len__(self) -> int:
        return len(self._queues)

    def add(self, item: Item) -> None:
        """Put a row at the end of its queue."""
        self._queues.setdefault((item.flow, item.key), []).append(item)
        self._count([item], 1)

    def remove(self, line: Line, gone: Collection[int]) -> list[Item]:
        """Take rows out of a queue, in its order. gone: their `id`s, and perhaps those of others."""
        queue = self._queues[line]
        taken = [item for item in queue if id(item) in gone]
        if taken and taken[0] is not queue[0]:
            queue[0].passed += 1
        self._count(taken, -1)
        self._queues[line] = left = [item for item in queue if id(item) not in gone]
        if not left:
            del self._queues[line]
        return taken

    def drop_dead(self, now: float) -> None:
        """Forget cancelled rows, and answer those whose deadline has passed."""
        for line, queue in list(self._queues.items()):
            if dead := {id(item) for item in queue if _is_dead(item, now)}:
                self.remove(line, dead)

    def is_light(self, tenant: Tenant, share: float) -> bool:
        """Whether a tenant wants no more than its share of a batch. share: in tokens, what is left of it."""
        return self.tokens[tenant] <= share or (share > 0 and self.rows[tenant] == 1)

    def overtaken(self, lead: Item) -> set[Line]:
        """Queues whose oldest row was overtaken often enough. lead: the row whose turn it is, whoever was before it."""
        return {line for line, queue in self._queues.items() if queue[0] is not lead and queue[0].passed >= _PASSED}

    def _count(self, items: Sequence[Item], sign: int) -> None:
        for item in items:
            tenant = item.flow.tenant
            self.rows[tenant] += sign
            self.tokens[tenant] += sign * item.tokens
            if not self.rows[tenant]:
                del self.rows[tenant], self.tokens[tenant]


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


class Scheduler:
    """Queues the rows of requests, and makes batches of them. Thread-safe: `InputProcessor` submits in many threads,
    `ModelLoop` takes batches in one. Call `wake` when a lane has changed."""

    def __init__(self, limits: Limits, lanes: Lanes, costs: BatchCosts):
        self._limits, self._lanes, self._costs = limits, lanes, costs
        self._ready = threading.Condition()
        self._queues, self._shares, self._haste = WaitingRows(), FairShare(), HasteBudget()
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
            if len(items) > (most := self._limits.queue_rows):
                problem, fix = "a request holds more rows than the queue", "send fewer rows a request"
                raise UsageError(problem, found=len(items), expected=f"at most {most}", fix=fix)
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
                if lanes and (batch := self._take(self._lead(lanes), lanes)):
                    return batch
                if lanes:
                    continue  # every row of it was cancelled between the look and the take
                left = None if end is None else end - time.monotonic()
                if self._closed or (left is not None and left <= 0):
                    return []
                self._ready.wait(left)

    def note(self, tokens: int, seconds: float) -> None:
        """Learn how fast batches run; how long rows will wait is predicted from it."""
        self._haste.earn(seconds)
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
        others = [item for line in lines for item in self._queues[line] if item is not lead]
        tokens = self._shares.tokens_of_batch(self._limits.batch_tokens, self._tokens_per_second)
        left = self._shares_of_batch(lead, {line[0].tenant for line in lanes}, tokens)
        light = {tenant for tenant in left if self._queues.is_light(tenant, left[tenant])}
        overtaken = self._queues.overtaken(lead)
        chosen = self._chosen(BatchChoice(lead, others, left, light, overtaken, self._limits.batch_rows, tokens))
        return [item for line in lines for item in self._run(line, chosen)]

    def _chosen(self, choice: BatchChoice[Item]) -> set[int]:
        """The `id`s of the batch that makes a row cheapest, or of little more than the row whose turn it is, early."""
        shares = {key: self._lanes.own_share(key) for key in {item.key for item in choice.others}}
        joined = partial(with_same_texts, waiting=choice.others, shares=shares, rows=choice.rows, tokens=choice.tokens)
        best = min(map(joined, choice.candidates()), key=(cost := self._costs.cost_per_token))
        if choice.may_be_hasty:
            hasty = joined(choice.hasty())
            if self._haste.spend((cost(hasty) - cost(best)) * sum(item.tokens for item in hasty)):
                best = hasty
        return set(map(id, best))

    def _shares_of_batch(self, lead: Item, tenants: Collection[Tenant], tokens: int) -> dict[Tenant, float]:
        """Tokens of the batch that belong to each tenant. tenants: of which a row can run; tokens: of the batch."""
        whole = min(tokens, self._limits.batch_rows * lead.length)
        share = whole / sum(tenant.weight for tenant in tenants)
        return {tenant: max(0.0, share - self._shares.ahead(tenant)) * tenant.weight for tenant in tenants}

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

    def _seconds(self, tokens: float, unknown: float = _FIRST_GUESS) -> float:
        """What they take. unknown: the answer before any batch has run."""
        return tokens / self._tokens_per_second if self._tokens_per_second else unknown


def _full(problem: str, seconds: float) -> QueueFullError:
    wait = max(0.1, round(seconds, 1))
    return QueueFullError(problem, retry_after=wait, fix="send the request again after the given time")
