"""The rows that wait in a `Scheduler`: queues by flow and key, and how much of each tenant's is in them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from sparsehub.engine.fair_share import ANYBODYS, Flow, Tenant
from sparsehub.errors import CancelledError

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


class WaitingRows(Mapping[Line, Sequence[Item]]):
    """Queues of rows, oldest first, none of them empty. Not thread-safe: the scheduler's lock guards it."""

    def __init__(self) -> None:
        self._queues: dict[Line, list[Item]] = {}
        self.rows: Counter[Tenant] = Counter()  # that wait
        self.tokens: Counter[Tenant] = Counter()

    def __getitem__(self, line: Line) -> Sequence[Item]:
        return self._queues[line]

    def __iter__(self) -> Iterator[Line]:
        return iter(self._queues)

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
        if not taken:
            return []
        if taken[0] is not queue[0]:
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
