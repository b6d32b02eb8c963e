"""What the engine tells whoever watches it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sparsehub.engine.task_registry import Task, TaskInfo


@dataclass(frozen=True)
class BatchShare:
    """One task's part of a batch; empty name and digest for the plain backbone.

    tokens: without padding; queued: seconds that its rows waited, all rows together; loading: those of them in which
    they waited for the task's weights.
    """

    name: str
    digest: str
    rows: int
    failed: int
    tokens: int = field(default=0, compare=False)
    queued: float = field(default=0.0, compare=False)
    loading: float = field(default=0.0, compare=False)


@dataclass(frozen=True)
class BatchReport:
    """What one batch was and where its time went, in seconds.

    mode: `swap`, `mixed` or `grouped-swap`; tokens: with padding; queued: of its oldest row; switches: times the arena
    moved; predictions: what the cost model said of each way that was open, heads not included; measured: what it was.
    """

    mode: str
    shares: tuple[BatchShare, ...]
    tokens: int
    queued: float
    switches: int
    switch: float
    forward: float
    head: float
    predictions: Mapping[str, float]

    @property
    def rows(self) -> int:
        return sum(share.rows for share in self.shares)

    @property
    def failed(self) -> int:
        return sum(share.failed for share in self.shares)

    @property
    def measured(self) -> float:
        return self.switch + self.forward


@dataclass(frozen=True)
class TaskStatus:
    """Where a task is. info: None until its package was read once; where: `device`, `host`, `loading` or `disk`;
    why_swap: why its rows cannot be mixed; references: rows that wait or run."""

    task: Task
    info: TaskInfo | None
    where: str
    nbytes: int
    pinned: bool
    references: int
    why_swap: str | None
