"""Who waits for a place, and who is let in: oldest first, of one lane at a time, as far as the cache goes. No torch.

A sequence is let in when the cache can hold all that it may come to: what runs is never thrown out for what comes, and
a full cache makes others wait.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Sequence

from sparsehub.engine.generation.limits import GenerationLimits
from sparsehub.engine.generation.request import Generation
from sparsehub.errors import CancelledError, QueueFullError, StoppingError

RETRY_SECONDS = 1.0


class AdmissionQueue:
    """Thread-safe. lane: of a generation, None while it cannot run; only those of one lane run together."""

    def __init__(self, limits: GenerationLimits, lane: Callable[[Generation], Hashable | None]):
        self._limits, self._lane = limits, lane
        self._ready = threading.Condition()
        self._queue: list[Generation] = []
        self._closed = self._stirred = False

    def __len__(self) -> int:
        return len(self._queue)

    def submit(self, generations: Sequence[Generation]) -> None:
        """Queue all or none; raises `QueueFullError`."""
        with self._ready:
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
        self.stir()

    def admit(self, running: Sequence[Generation], lane: Hashable | None) -> tuple[list[Generation], Hashable | None]:
        """Take out those that may run now, and the lane that runs then. lane: of what is running, if anything is.

        Where the oldest that can run is of another lane than what runs, nobody is let in until that has ended.
        """
        with self._ready:
            lanes = {id(g): found for g in self._queue if (found := self._lane(g)) is not None}
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
        """Take out those that were cancelled or have waited too long, with what is to be said to them."""
        with self._ready:
            late = "the deadline passed while the request was waiting"
            found = [
                (g, CancelledError("the request was cancelled" if g.cancelled else late))
                for g in self._queue
                if g.cancelled or (g.deadline is not None and g.deadline <= now)
            ]
            self._remove([generation for generation, _ in found])
            return found

    def take_all(self, concerns: Callable[[Generation], bool] = lambda _: True) -> list[Generation]:
        """Take out everything that it concerns."""
        with self._ready:
            found = [generation for generation in self._queue if concerns(generation)]
            self._remove(found)
            return found

    def wait(self, timeout: float | None) -> None:
        """Until something changed: a request, a cancellation, a task that was loaded."""
        with self._ready:
            self._ready.wait_for(lambda: self._stirred, timeout)
            self._stirred = False

    def stir(self) -> None:
        """Something changed."""
        with self._ready:
            self._stirred = True
            self._ready.notify_all()

    def close(self) -> None:
        """Take nothing more; what waits can still be let in."""
        with self._ready:
            self._closed = True
        self.stir()

    def _remove(self, chosen: Sequence[Generation]) -> None:
        gone = {id(generation) for generation in chosen}
        self._queue = [generation for generation in self._queue if id(generation) not in gone]
