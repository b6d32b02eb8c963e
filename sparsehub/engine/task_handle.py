"""Task handles, the references that keep a task in memory; and the budgets and the usage of `Residency`."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import Protocol

from sparsehub.engine.resident import Resident
from sparsehub.engine.task_registry import Task
from sparsehub.errors import CancelledError, SparsehubError, UsageError

UNLIMITED = 1 << 62
LOAD_SECONDS = 60.0  # how long a request waits for a task that was never in memory, unless it says otherwise


@dataclass(frozen=True)
class Budgets:
    """How much memory `Residency` may use for tasks, and `StateCache` for states; given to `Engine`."""

    device_bytes: int = UNLIMITED  # of tasks that are ready to run
    host_bytes: int = 0  # of tasks kept in host memory after their eviction, 0 for none; on a CPU it is the same memory
    loaders: int = 1  # threads that load tasks
    state_bytes: int = 0  # of texts' hidden states at branch points (`StateCache`), 0 for none
    composed: int = 64  # compositions (`a+b*0.5`) that are kept for the next request once no row references them

    def __post_init__(self) -> None:
        rest = (self.host_bytes, self.state_bytes, self.composed)
        if self.device_bytes < 1 or self.loaders < 1 or min(rest) < 0:
            raise UsageError("budgets are bytes above 0, and at least one loader", found=str(self))


@dataclass(frozen=True)
class Usage:
    """What the tasks in memory take, and what `Residency` has done since the start; for metrics."""

    device_bytes: int
    host_bytes: int
    device_tasks: int
    host_tasks: int
    hits: int  # acquisitions that found their task on the device
    misses: int  # acquisitions that had to wait for a load
    loads: int
    evictions: int


class ReferenceCounter(Protocol):
    """What counts the references to task handles; `Residency` does."""

    def hold(self, handle: TaskHandle, count: int = 1) -> None:
        """Add references to a handle that has one."""

    def release(self, handle: TaskHandle) -> None:
        """Give one reference back."""


@dataclass(eq=False)
class TaskHandle:
    """One task that is in memory or on its way there; `Residency.acquire` gives it. A task that is referenced is never
    evicted. All but `wait` is read and written by `Residency`, under its lock."""

    task: Task
    counter: ReferenceCounter
    references: int = 0
    pinned: bool = False  # never evicted, referenced or not
    unwanted: bool = False  # no longer served: dropped with its last reference
    resident: Resident | None = None  # None until it is loaded, and after it was evicted
    error: SparsehubError | None = None  # why the load failed
    loading: bool = False
    ready_at: float = 0.0  # when it came to the device, on the monotonic clock
    ready: threading.Event = field(default_factory=threading.Event)  # set when it is on the device or its load failed

    def wait(self, timeout: float | None = None) -> Resident:
        """The task, once it is on the device; raises what its load raised, or `CancelledError` after `timeout` s."""
        end = None if timeout is None else time.monotonic() + timeout
        while (resident := self.resident) is None:  # it may be loaded again right after it was ready
            if not self.ready.wait(None if end is None else end - time.monotonic()):
                raise CancelledError(f"{self.task.reference} was not loaded in time", found=f"{timeout} s")
            if self.error is not None:
                raise self.error
            if self.resident is None and not self.loading:
                raise CancelledError(f"{self.task.reference} is gone")
        return resident

    def hold(self) -> None:
        """Add a reference."""
        self.counter.hold(self)

    def release(self) -> None:
        """Give a reference back."""
        self.counter.release(self)


class ResidencyListener(Protocol):
    """What `Residency` tells about loads; `ModelLoop` and `Generator`, whose rows wait for them."""

    def task_loaded(self, handle: TaskHandle) -> None:
        """A task is ready, or could not be loaded (`handle.error`). Called without a lock, in any thread."""
