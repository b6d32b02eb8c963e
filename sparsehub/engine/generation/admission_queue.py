"""The queue of texts, and which of them are admitted: those whose turn it is, of one lane at a time, as far as the
cache goes.

A text is admitted when the cache can hold all that it may come to: what runs is never evicted for what comes, and a
full cache makes others wait. So that they need not wait for long, no tenant of several gets all of the cache.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Hashable, Sequence

from sparsehub.engine.fair_share import SOON, FairShare, Tenant, most_of
from sparsehub.engine.generation.cache_limits import GenerationLimits
from sparsehub.engine.generation.pace import Pace
from sparsehub.engine.generation.request import Generation
from sparsehub.engine.lane_policy import LanePolicy
from sparsehub.engine.task_handle import TaskHandle
from sparsehub.errors import CancelledError, QueueFullError, StoppingError

RETRY_SECONDS = 1.0
OTHERS = 7.0  # times what is free: one tenant alone may hold seven eighths of the cache and of the places


class AdmissionQueue:
    """Holds the texts of a `Generator` that do not run yet. Thread-safe. lanes: only texts of one lane run together."""

    def __init__(self, limits: GenerationLimits, lanes: LanePolicy):
        self.changed = threading.Event()  # a request, a cancellation, a loaded task: there may be something to do
        self.pace = Pace()
        self._limits, self._lanes = limits, lanes
        self._lock = threading.Lock()
        self._queue: list[Generation] = []
        self._shares = FairShare()
        self._closed = False

    def __len__(self) -> int:
        return len(self._queue)

    def submit(self, generations: Sequence[Generation]) -> None:
        """Queue all, which are of one flow, or none; raises `QueueFullError`, also where they would wait longer than
        they may."""
        with self._lock:
            if self._closed:
                raise StoppingError
            now = time.monotonic()
            if (refusal := self._refusal(generations, now)) is not None:
                raise refusal
            for generation in generations:
                generation.arrived = now
            self._queue.extend(generations)
        self.wake()

    def admit(self, running: Sequence[Generation], lane: Hashable | None) -> tuple[list[Generation], Hashable | None]:
        """Take out the texts that may run now; with the lane that runs then. lane: of what is running, if anything is.

        Where the one whose turn it is is of another lane than what runs, none is admitted until that has ended.
        """
        with self._lock:
            lanes = {id(g): found for g in self._queue if (found := self._lanes.of_task(g.digest)) is not None}
            able = [g for g in self._queue if id(g) in lanes]
            if able:
                self._shares.advance(g.flow.tenant for g in able)
            room, chosen = _Room(self._limits, running), list[Generation]()
            while able and room.places > 0:
                lead = self._shares.next(able)
                tenant = lead.flow.tenant
                if not room.is_share(lead):
                    able = [g for g in able if g.flow.tenant != tenant]  # its turn comes when one of its own has ended
                    continue
                if not running and not chosen:
                    lane = lanes[id(lead)]
                elif lanes[id(lead)] != lane and not chosen:
                    break
                able.remove(lead)
                if lanes[id(lead)] != lane:
                    continue
                if not room.take(lead):
                    break  # a short one behind it does not overtake: it could be overtaken for ever
                chosen.append(lead)
                self._shares.charge(lead.flow, lead.length)
            self._remove(chosen)
            return chosen, lane

    def dead(self, now: float) -> list[tuple[Generation, CancelledError]]:
        """Take out the texts that were cancelled or have waited too long, each with its error."""
        with self._lock:
            late = "the deadline passed while the request was waiting"
            found = [
                (g, CancelledError("the request was cancelled" if g.cancelled else late))
                for g in self._queue
                if g.cancelled or (g.deadline is not None and g.deadline <= now)
            ]
            self._remove([generation for generation, _ in found])
            return found

    def take_all(self) -> list[Generation]:
        """Take out every text."""
        with self._lock:
            found, self._queue = self._queue, []
            return found

    def take_of(self, handle: TaskHandle) -> list[Generation]:
        """Take out the texts that wait for a task."""
        with self._lock:
            found = [generation for generation in self._queue if generation.handle is handle]
            self._remove(found)
            return found

    def wait(self, timeout: float | None) -> None:
        """Wait until something has changed since the last wait."""
        self.changed.wait(timeout)
        self.changed.clear()  # before the caller looks at the queue: what changes from now on ends the next wait

    def wake(self) -> None:
        """End the wait of the generator's thread: something has changed."""
        self.changed.set()

    def close(self) -> None:
        """Take no more texts; those that wait can still be admitted."""
        with self._lock:
            self._closed = True
        self.wake()

    def _remove(self, chosen: Sequence[Generation]) -> None:
        gone = {id(generation) for generation in chosen}
        self._queue = [generation for generation in self._queue if id(generation) not in gone]
        waiting = {generation.flow.tenant for generation in self._queue}
        for generation in chosen:
            if generation.flow.tenant not in waiting:
                self._shares.forget(generation.flow.tenant)

    def _refusal(self, generations: Sequence[Generation], now: float) -> QueueFullError | None:
        """Why texts cannot be queued: no room, or none for their tenant, or it would take too long."""
        if not generations:
            return None
        tenant, waiting = generations[0].flow.tenant, len(self._queue)
        tenants, free = Counter(g.flow.tenant for g in self._queue), self._limits.waiting - waiting
        mine = tenants[tenant]
        if len(generations) > free:
            return _full(f"the cache is full and {waiting} sequences wait for a place in it", RETRY_SECONDS)
        if mine and mine + len(generations) > most_of(tenant, tenants, mine, free):
            return _full(
                f"{mine} sequences of {tenant.name} wait, and the rest of the queue is for others", RETRY_SECONDS
            )
        seconds = self.pace.seconds(self._before(tenant, sum(g.max_tokens for g in generations)))
        deadline = min((g.deadline for g in generations if g.deadline is not None), default=math.inf)
        # Where nothing waits it is taken: a wrong prediction is not to keep out what would correct it.
        if seconds <= max(allowed := deadline - now, SOON) or not waiting:
            return None
        return _full(f"these texts would wait {seconds:.0f} s, and may wait {allowed:.0f}", seconds - allowed)

    def _before(self, tenant: Tenant, more: int) -> float:
        """New tokens until all of a tenant's texts have run, at most; `more` of its own among them."""
        tokens: Counter[Tenant] = Counter({tenant: more})
        for generation in self._queue:
            tokens[generation.flow.tenant] += generation.max_tokens
        weights = sum(other.weight for other in tokens)
        return min(tokens.total(), tokens[tenant] * weights / tenant.weight)


class _Room:
    """What is left of the cache and of the places while texts are admitted, and what each tenant holds of them."""

    def __init__(self, limits: GenerationLimits, running: Sequence[Generation]):
        self._limits = limits
        self.places, self.pages = limits.sequences, limits.pages
        self._held: dict[Tenant, tuple[int, int]] = {}  # places and pages
        for generation in running:
            self._hold(generation)

    def is_share(self, generation: Generation) -> bool:
        """Whether its tenant may hold that much while others want something too; each may hold one text."""
        tenant, pages = generation.flow.tenant, self._limits.pages_of(generation.length)
        if tenant not in self._held:
            return True
        places, held = self._held[tenant]
        fits = places + 1 <= most_of(tenant, self._held, places, self.places, OTHERS)
        return fits and held + pages <= most_of(tenant, self._held, held, self.pages, OTHERS)

    def take(self, generation: Generation) -> bool:
        """Whether there is room for it; it has it then."""
        if self._limits.pages_of(generation.length) > self.pages:
            return False
        self._hold(generation)
        return True

    def _hold(self, generation: Generation) -> None:
        tenant, pages = generation.flow.tenant, self._limits.pages_of(generation.length)
        places, held = self._held.get(tenant, (0, 0))
        self._held[tenant] = (places + 1, held + pages)
        self.places, self.pages = self.places - 1, self.pages - pages


def _full(problem: str, seconds: float) -> QueueFullError:
    wait = max(0.1, round(seconds, 1))
    return QueueFullError(problem, retry_after=wait, fix="send the request again after the given time")
