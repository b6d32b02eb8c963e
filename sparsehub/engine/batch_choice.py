"""Which rows could run together with the one whose turn it is; `Scheduler` takes the cheapest of these batches. Holds
no torch."""

from __future__ import annotations

import heapq
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from sparsehub.engine.fair_share import Flow, Tenant

MOST_HALVINGS = 4  # how many sizes of a batch are compared: all rows, half of them, a quarter, ...
_ALIKE = 2  # times as long or as short as the row that leads: beyond it a row is not taken along for fairness alone


class Lanes(Protocol):
    """Which rows may share a batch: those whose keys have one lane. `LanePolicy` decides it for an engine."""

    def lane_of(self, key: Any) -> Hashable | None:
        """The lane of a key; None while its rows cannot run. Asked whenever a batch is made."""

    def own_share(self, key: Any) -> float:
        """Which part of a row of a key runs for it alone in a batch that has its text already: 0 to 1."""


class BatchRow(Protocol):
    """What is asked of a row that waits; the scheduler's items are such."""

    key: Hashable
    length: int
    sequences: int
    arrived: float
    flow: Flow

    @property
    def tokens(self) -> int:
        """Tokens of all its sequences, each as long as the longest."""


R = TypeVar("R", bound=BatchRow)


@dataclass(frozen=True)
class BatchChoice(Generic[R]):
    """The batches that the row whose turn it is may lead."""

    lead: R
    others: Sequence[R]  # of its lane
    left: Mapping[Tenant, float]  # tokens of the batch that belong to each tenant of which a row can run
    light: Collection[Tenant]  # of these those that want no more than that
    overtaken: Collection[tuple[Flow, Hashable]]  # flows and keys of which no row goes along any more
    rows: int  # that a batch may have
    tokens: int  # that it may have, padding included

    def candidates(self) -> list[list[R]]:
        """Of the lead's own key, and of all keys: all rows that fit, half of them, and so on."""
        key, due = self.lead.key, self._due()
        already = {id(row) for row in due}
        more = [r for r in self.others if id(r) not in already and (r.flow, r.key) not in self.overtaken]
        found: list[list[R]] = []
        if all(row.key == key for row in due):
            found += self._batches(due, [row for row in more if row.key == key])
        if any(row.key != key for row in self.others):
            found += self._batches(due, more)
        return found

    @property
    def may_be_hasty(self) -> bool:
        """Whether the lead is of a tenant that wants no more than its share, and others want something too."""
        return len(self.left) > 1 and self.lead.flow.tenant in self.light

    def hasty(self) -> list[R]:
        """The lead and what goes along with it in any case: nothing else fills the batch."""
        return self._fill([self.lead], self._nearest(self._due()))

    def _due(self) -> list[R]:
        """The rows that go along because all that their tenant has waiting is within its share of this batch. With one
        tenant there is nothing to share."""
        if len(self.left) == 1:
            return []
        alike = range(self.lead.length // _ALIKE, self.lead.length * _ALIKE + 1)
        return [row for row in self.others if row.flow.tenant in self.light and row.length in alike]

    def _batches(self, due: Sequence[R], more: Sequence[R]) -> list[list[R]]:
        """All that fit, half of them, and so on, but never without what is due."""
        least, owed = self._fill([self.lead], self._nearest(due)), dict(self.left)
        for row in least:
            owed[row.flow.tenant] -= row.tokens
        first, then = list[R](), list[R]()
        for row in self._nearest(more):  # those within their tenant's share, and after them what there is
            (first if owed[row.flow.tenant] > 0 else then).append(row)
            owed[row.flow.tenant] -= row.tokens
        return _beginnings(self._fill(least, [*first, *then]), len(least))

    def _fill(self, begun: Sequence[R], more: Sequence[R]) -> list[R]:
        """What a batch has begun with, and as much of `more` as goes into the budget."""
        chosen = list(begun)
        length, sequences = max(row.length for row in chosen), sum(row.sequences for row in chosen)
        for row in more:
            longest, total = max(length, row.length), sequences + row.sequences
            if len(chosen) >= self.rows:
                break
            if longest * total <= self.tokens:
                length, sequences = longest, total
                chosen.append(row)
        return chosen

    def _nearest(self, rows: Sequence[R]) -> list[R]:
        """Of each tenant's rows as many as a batch may have, those of most similar length first; of equal ones those of
        the lead's key, then the older."""

        def distance(row: R) -> tuple[int, bool, float]:
            return abs(row.length - self.lead.length), row.key != self.lead.key, row.arrived

        own: dict[str, list[R]] = {}
        for row in rows:
            own.setdefault(row.flow.tenant.name, []).append(row)
        return sorted(
            (row for each in own.values() for row in heapq.nsmallest(self.rows, each, distance)), key=distance
        )


def _beginnings(rows: list[R], least: int) -> list[list[R]]:
    """All rows, the first half of them, and so on: the last ones are least like the first, and make the padding."""
    sizes = {max(len(rows) >> halvings, least): None for halvings in range(MOST_HALVINGS)}
    return [rows[:size] for size in sizes]
