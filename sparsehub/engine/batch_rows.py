"""The rows of a batch, task by task: what the scheduler queues, as the batch planner and the batch runner see it."""

from __future__ import annotations

import functools
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from sparsehub.engine.cost_model import RowGroup
from sparsehub.engine.resident import Resident
from sparsehub.engine.scheduler import Item
from sparsehub.engine.task_handle import TaskHandle
from sparsehub.engine.trunk_plan import NEVER
from sparsehub.errors import CancelledError, EngineError, SparsehubError
from sparsehub.package.encoding import Encoded
from sparsehub.package.heads import Head
from sparsehub.package.task_spec import EMBEDDING, MEAN, POOLINGS, HeadSpec

RowKey = tuple[str | None, bool]  # of an `Item`: the task's digest (None: the plain backbone), and `QueuedRow.embed`


@dataclass(frozen=True)
class QueuedRow:
    """The payload of a scheduler's `Item`: a tokenised row and its task."""

    row: Encoded
    handle: TaskHandle | None  # None: the plain backbone
    embed: bool  # whether pooled states are wanted, and not the head's answer


@dataclass(frozen=True)
class BatchRows:
    """Rows of one task that run together."""

    rows: Sequence[Encoded]
    task: Resident | None  # None: the plain backbone
    embed: bool  # whether pooled states are wanted, and not the head's answer

    @functools.cached_property
    def sequences(self) -> int:
        """Sequences of all rows; a row of multiple choice, or of texts that are read alone, has several."""
        return sum(len(row.sequences) for row in self.rows)

    @property
    def head(self) -> Head | None:
        """None where pooled states are the answer."""
        return None if self.embed or self.task is None else self.task.head

    @functools.cached_property
    def answered(self) -> tuple[int, ...]:
        """Equal for the rows of two tasks whose heads can run as one."""
        if self.head is not None:
            return (*self.head.alike, len(self.rows[0].sequences))
        own = self.pooled
        return () if own is None else (-2, POOLINGS.index(own.pooling or MEAN), int(bool(own.normalize)))

    @property
    def pooled(self) -> HeadSpec | None:
        """How the task makes vectors of its states; None where it does so as the backbone's checkpoint says."""
        spec = self.task.info.spec if self.task is not None else None
        return spec.head if spec is not None and spec.kind == EMBEDDING else None

    @property
    def first(self) -> int:
        """The first layer that the task changes (`AdapterWeights.first`)."""
        return NEVER if self.task is None or self.task.adapter is None else self.task.adapter.first

    @functools.cached_property
    def group(self) -> RowGroup:
        """Their sizes, for the cost model."""
        longest, sequences = max(row.length for row in self.rows), self.sequences
        return RowGroup(sequences * longest, self.task.patch.nnz if self.task else 0, sequences, longest)


@dataclass(frozen=True)
class BatchPart:
    """The rows of one task in a batch, and the queue's items that wait for their answers."""

    rows: BatchRows
    items: Sequence[Item]


def keys_of(digest: str) -> tuple[RowKey, RowKey]:
    """The scheduler's keys of a task's rows."""
    return (digest, False), (digest, True)


def by_task(batch: Sequence[Item]) -> list[BatchPart]:
    """A batch's rows task by task, in the order in which the tasks come; rows whose task is not resident are left
    out."""
    found: dict[Hashable, tuple[Resident | None, list[Item]]] = {}
    for item in batch:
        handle = item.payload.handle
        task = handle.resident if handle is not None else None
        if handle is None or task is not None:
            found.setdefault(item.key, (task, []))[1].append(item)
    return [
        BatchPart(BatchRows([item.payload.row for item in items], task, items[0].payload.embed), items)
        for task, items in found.values()
    ]


def resident_rows(batch: Sequence[Item]) -> list[Item]:
    """The rows of a batch whose task is resident; the others are answered with an error.

    Such a row was queued while its task's load failed, and is taken because another request has loaded the task since;
    or its task's weights were found damaged after it was taken, and are loaded again now.
    """
    able = []
    for item in batch:
        handle = item.payload.handle
        if handle is None or handle.resident is not None:
            able.append(item)
        else:
            item.future.set_exception(handle.error or _why_gone(handle))
    return able


def _why_gone(handle: TaskHandle) -> SparsehubError:
    name = handle.task.reference
    if handle.loading:
        return EngineError(f"the weights of {name} in memory were damaged; they are loaded again", fix="send it again")
    return CancelledError(f"{name} is gone")
