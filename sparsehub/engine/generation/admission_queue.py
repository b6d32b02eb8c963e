"""The queue of texts, and which of them are admitted: oldest first, of one lane at a time, as far as the cache goes.

A text is admitted when the cache can hold all that it may come to: what runs is never evicted for what comes, and a
full cache makes others wait.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Hashable, Sequence

from sparsehub.engine.generation.cache_limits import GenerationLimits
from sparsehub.engine.generation.request import Generation
from sparsehub.engine.lane_policy import LanePolicy
from sparsehub.engine.task_handle import TaskHandle
from sparsehub.errors import CancelledError, QueueFullError, StoppingError

RETRY_SECONDS = 1.0


class AdmissionQueue:
    """Holds the texts of a `Generator` that do not run yet. Thread-safe. lanes: only texts of one lane run together."""

    def __init__(self, limits: GenerationLimits, lanes: LanePolicy):
        self.changed = threading.Event()  # a request, a cancellation, a loaded task: there may be something to do
        self._limits, self._lanes = limits, lanes
        self._lock = threading.Lock()
        self._queue: list[Generation] = []
        self._closed = False

    def __len__(self) -> int:
        return len(self._queue)

    def submit(self, generations: Sequence[Generation]) -> None:
        """Queue all or none; raises `QueueFullError`."""
        with self._lock:
            if self._closed:
                raise StoppingError
            if len(self._queue) + len(generations) > self._limits.waiting:
                raise QueueFullError(
                    f"the cache is full and {len(self._queue)} sequences wait for a place in it",
                    retry_after=RETRY_SECONDS,
                    fix="send the request again after the given time",
                )
            for generation in generations:
                generation.arrived = time.monotonic()
            self._queue.extend(generations)
        self.wake()

    def admit(self, running: Sequence[Generation], lane: Hashable | None) -> tuple[list[Generation], Hashable | None]:
        """Take out the texts that may run now; with the lane that runs then. lane: of what is running, if anything is.

        Where the oldest that can run is of another lane than what runs, none is admitted until that has ended.
        """
        with self._lock:
            lanes = {id(g): found for g in self._queue if (found := self._lanes.of_task(g.digest)) is not None}
            able = [g for g in self._queue if id(g) in lanes]
            if not able or (running and lanes[id(able[0])] != lane):
                return [], lane
            lane = lanes[id(able[0])]
            chosen: list[Generation] = []
            places = self._limits.sequences - len(running)
            pages = self._limits.pages - sum(self._limits.pages_of(g.length) for g in running)
            for generation in able:
                pages -= self._limits.pages_of(generation.length)
                if len(chosen) >= places or pages < 0:
                    break  # a short one behind it does not overtake: it could be overtaken for ever
                if lanes[id(generation)] == lane:
                    chosen.append(generation)
                else:
                    pages += self._limits.pages_of(generation.length)
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
