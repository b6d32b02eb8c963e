"""What residency is told, what it says, and what it hands out."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from sparsehub.engine.resident import Resident
from sparsehub.engine.task_registry import Task
from sparsehub.errors import CancelledError, SparsehubError, UsageError

UNLIMITED = 1 << 62
LOAD_SECONDS = 60.0  # that a request waits for a task which was never in memory, where it says nothing else


@dataclass(frozen=True)
class Budgets:
    """device_bytes: of tasks that are ready to run; host_bytes: of tasks kept in host memory for the next time they are
    wanted on the device, 0 for none (on a CPU the two are the same memory); loaders: threads that load; composed: tasks
    that requests made of others and that nobody holds, kept for the next request."""

    device_bytes: int = UNLIMITED
    host_bytes: int = 0
    loaders: int = 1
    composed: int = 64

    def __post_init__(self) -> None:
        if self.device_bytes < 1 or self.host_bytes < 0 or self.loaders < 1 or self.composed < 0:
            raise UsageError("budgets are bytes above 0, and at least one loader", found=str(self))


@dataclass(frozen=True)
class Usage:
    """What residency holds and did. hits: requests whose task was ready; misses: that had to wait for a load."""

    device_bytes: int
    host_bytes: int
    device_tasks: int
    host_tasks: int
    hits: int
    misses: int
    loads: int
    evictions: int


@dataclass(eq=False)
class TaskHandle:
    """One task that somebody wants or that is in memory. ready: set when it is on the device or could not be loaded."""

    task: Task
    references: int = 0
    pinned: bool = False
    unwanted: bool = False  # served no longer: it goes with its last reference
    resident: Resident | None = None
    error: SparsehubError | None = None
    loading: bool = False
    ready_at: float = 0.0  # when it came to the device, on the monotonic clock
    ready: threading.Event = field(default_factory=threading.Event)

    def wait(self, timeout: float | None = None) -> Resident:
        """The task, once it is on the device; raises what its load raised, or `CancelledError` after `timeout` s."""
        if not self.ready.wait(timeout):
            raise CancelledError(f"{self.task.reference} was not loaded in time", found=f"{timeout} s")
        if self.error is not None:
            raise self.error
        assert self.resident is not None  # ready, and no error
        return self.resident
