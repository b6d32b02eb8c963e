"""The trunk plan: which rows of a batch are the same text, and from which layer on each task runs rows of its own."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Generic, TypeVar

from sparsehub.engine.layer_stack import BEFORE

T = TypeVar("T")
TRUNK_SLOT = 0  # of rows that run on the base weights
NEVER = 1 << 30  # `LayerStack.first_changed` of the plain backbone, which changes nothing in any stack


@dataclass(frozen=True)
class Stage:
    """The layers from one branch point to the next, and the rows that run through them."""

    first: int  # the layer at whose input it begins; `BEFORE` for the start of the pass
    layers: int  # of them
    rows: Sequence[tuple[int, int]]  # (slot, text), sorted; slot 0 is the trunk's
    sources: Sequence[int]  # by row, the row of the stage before that it goes on from

    @cached_property
    def texts(self) -> list[int]:
        """The text of each row."""
        return [text for _, text in self.rows]

    @cached_property
    def bounds(self) -> list[tuple[int, int, int]]:
        """(slot, first row, row after the last), in order, without gaps."""
        edges = [i for i, (slot, _) in enumerate(self.rows) if not i or self.rows[i - 1][0] != slot]
        ends = [*edges[1:], len(self.rows)]
        return [(self.rows[start][0], start, stop) for start, stop in zip(edges, ends, strict=True)]

    def bounds_of(self, rows: range) -> list[tuple[int, int, int]]:
        """`bounds` of some of the rows, counted from the first of them."""
        cut = ((slot, max(start, rows.start), min(stop, rows.stop)) for slot, start, stop in self.bounds)
        return [(slot, start - rows.start, stop - rows.start) for slot, start, stop in cut if start < stop]


@dataclass(frozen=True)
class TrunkPlan(Generic[T]):
    """How a batch runs as trunk and branches. `BatchPlanner` weighs it, `BatchRunner` runs it."""

    texts: Sequence[T]  # each once
    keys: Sequence[Hashable]  # by text, what is equal for sequences of it and for no others
    slots: Mapping[Hashable, int]  # by task that changes something: its slot, from 1 on
    stages: Sequence[Stage]
    places: Sequence[int]  # by sequence of the batch, its row of the last stage
    text_of: Sequence[int]  # by sequence of the batch, its text

    @cached_property
    def origins(self) -> list[int]:
        """By sequence of the batch, a row of the first stage that has its text."""
        return [self.first_row[text] for text in self.text_of]

    @cached_property
    def first_row(self) -> dict[int, int]:
        """By text, the first row of the first stage that has it."""
        return {text: row for row, text in reversed([*enumerate(self.stages[0].texts)])}

    @property
    def entry(self) -> int | None:
        """The first branch point, where states of the trunk may be kept; None where there is none behind a layer."""
        return self.stages[1].first if len(self.stages) > 1 and self.stages[1].first > 0 else None

    @property
    def saves(self) -> bool:
        """Whether any row of the batch runs less often than it would alone."""
        return len(self.stages[0].rows) < len(self.places)


def plan_trunk(sequences: Iterable[tuple[Hashable, T, Hashable, int]], layers: int) -> TrunkPlan[T]:
    """Lay a batch out as trunk and branches.

    sequences: (what is equal for sequences of one text, the text, task, `LayerStack.first_changed` of the task), in the
    order of the batch; layers: that there are.
    """
    texts: dict[Hashable, int] = {}
    slots: dict[Hashable, int] = {}
    kept: list[T] = []
    firsts = {TRUNK_SLOT: layers}
    wanted: list[tuple[int, int]] = []
    for key, text, task, first in sequences:
        number = texts.setdefault(key, len(kept))
        if number == len(kept):
            kept.append(text)
        slot = TRUNK_SLOT if first >= layers else slots.setdefault(task, len(slots) + 1)
        firsts[slot] = first
        wanted.append((slot, number))
    stages = _stages(sorted(set(wanted)), firsts, layers)
    row_of = {row: place for place, row in enumerate(stages[-1].rows)}
    return TrunkPlan(kept, list(texts), slots, stages, [row_of[row] for row in wanted], [text for _, text in wanted])


def _stages(wanted: Sequence[tuple[int, int]], firsts: Mapping[int, int], layers: int) -> list[Stage]:
    starts = sorted({BEFORE, *(first for first in firsts.values() if first < layers)})
    stages: list[Stage] = []
    before: dict[tuple[int, int], int] = {}
    for start, end in zip(starts, [*starts[1:], layers], strict=True):
        rows = sorted({row if firsts[row[0]] <= start else (TRUNK_SLOT, row[1]) for row in wanted})
        sources = [before.get(row, before.get((TRUNK_SLOT, row[1]), row[1])) for row in rows]
        stages.append(Stage(start, end - max(start, 0), rows, sources))
        before = {row: place for place, row in enumerate(rows)}
    return stages
