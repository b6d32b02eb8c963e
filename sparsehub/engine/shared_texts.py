"""Rows that go along with a batch because their text is in it already: `Scheduler` adds them. Holds no torch.

Such a row runs only the layers from the first one on that its task changes, so the budgets of a batch count that share
of it, and not the whole row.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Protocol, TypeVar


class SharedRow(Protocol):
    """What is asked of a row that waits; the scheduler's items are such."""

    key: Hashable
    text: Hashable
    length: int
    sequences: int


Row = TypeVar("Row", bound=SharedRow)


def with_same_texts(
    batch: Sequence[Row], waiting: Iterable[Row], shares: Mapping[Hashable, float], rows: int, tokens: int
) -> list[Row]:
    """A batch, and after it the rows of its texts that fit into what its own rows leave of the budgets.

    waiting: rows that may go along; shares: by key, which part of a row runs for it alone where its text is in the
    batch, rows of other keys stay where they are; rows, tokens: budgets, of which the batch may have used all.
    """
    if min(shares.values(), default=1.0) >= 1.0:
        return list(batch)
    longest, texts = max(row.length for row in batch), set[Hashable]()
    used = 0.0  # sequences, by what runs
    for row in batch:
        used += _runs(row, shares, texts)
        texts.add(row.text)
    joined, taken = list(batch), {id(row) for row in batch}
    for row in waiting:
        if row.text is None or row.text not in texts or shares.get(row.key, 1.0) >= 1.0 or id(row) in taken:
            continue
        more = used + _runs(row, shares, texts)
        if more <= rows and more * longest <= tokens:
            used = more
            joined.append(row)
    return joined


def _runs(row: SharedRow, shares: Mapping[Hashable, float], texts: set[Hashable]) -> float:
    """How many of its sequences run for a row alone."""
    return row.sequences * (shares.get(row.key, 1.0) if row.text is not None and row.text in texts else 1.0)
