"""What the engine reports: every batch, to a `BatchObserver`, and the state of every task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from sparsehub.engine.task_registry import Task, TaskInfo


@dataclass(frozen=True)
class BatchShare:
    """One task's part of a batch."""

    name: str  # empty, like the digest, for the plain backbone
    digest: str
    rows: int
    failed: int  # rows that were answered with an error
    tokens: int = field(default=0, compare=False)  # without padding
    queued: float = field(default=0.0, compare=False)  # seconds that its rows waited, all rows together
    loading: float = field(default=0.0, compare=False)  # those of them in which the task was being loaded


@dataclass(frozen=True)
class TenantShare:
    """One tenant's part of a batch."""

    name: str  # empty for `ANYONE`
    rows: int
    queued: float  # seconds that its rows waited, all rows together


@dataclass(frozen=True)
class BatchReport:
    """What one batch was and where its time went; times are in seconds."""

    mode: str  # `swap`, `mixed`, `grouped-swap` or `trunk`
    shares: tuple[BatchShare, ...]
    tokens: int  # with padding
    queued: float  # that its oldest row waited
    switches: int  # times that the arena's weights changed
    switch: float
    forward: float
    head: float
    predictions: Mapping[str, float]  # by mode, of every mode that was open to it; heads not included
    tenants: tuple[TenantShare, ...] = ()

    @property
    def rows(self) -> int:
        """Rows of all tasks."""
        return sum(share.rows for share in self.shares)

    @property
    def failed(self) -> int:
        """Rows of all tasks that were answered with an error."""
        return sum(share.failed for share in self.shares)

    @property
    def measured(self) -> float:
        """What the prediction of its mode has to be compared with."""
        return self.switch + self.forward


class BatchObserver(Protocol):
    """What an `Engine` tells about its batches; the endpoint's `Metrics` is one."""

    def observe(self, report: BatchReport) -> None:
        """A batch has run, and its rows are answered. Called in the model thread: the next batch waits for it."""


@dataclass(frozen=True)
class TaskStatus:
    """Where a task is; `Engine.status` gives one for every task."""

    task: Task
    info: TaskInfo | None  # None until its package was read once
    where: str  # `device`, `host`, `loading` or `disk`
    nbytes: int  # on the device
    pinned: bool  # whether it is never evicted
    references: int  # rows that wait or run, and one while its patch is in the arena
    why_swap: str | None  # why its rows cannot be mixed; None where they can, or where it is not on the device
    why_unshared: str | None  # as `why_swap`: why they share no layers with rows of the same text for other tasks
