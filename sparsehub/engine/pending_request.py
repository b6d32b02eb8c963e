"""The stages of a request: its task acquired, then prepared, then pending until its answers are there."""

from __future__ import annotations

from abc import ABC, abstractmethod
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import cached_property
from types import TracebackType
from typing import Generic, Self, TypeVar

from sparsehub.engine.fair_share import ANYONE, Tenant
from sparsehub.engine.residency import Residency
from sparsehub.engine.task_handle import LOAD_SECONDS, TaskHandle
from sparsehub.engine.task_registry import TaskInfo
from sparsehub.errors import UsageError
from sparsehub.package.encoding import Encoded

T = TypeVar("T")


class Holder(ABC):
    """Base of what holds a reference to a task: `release`, or the end of its `with` block, gives it back."""

    _released = False

    def release(self) -> None:
        """Give the reference back; a second call does nothing."""
        if not self._released:
            self._released = True
            self._give_back()

    @abstractmethod
    def _give_back(self) -> None:
        """Release what is held; called once."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class AcquiredTask(Holder):
    """A task that is not evicted until this is released; `Engine.acquire` gives it.

    handle: referenced for this object already; timeout: seconds that a load may take, None for a minute.
    """

    def __init__(self, residency: Residency, handle: TaskHandle, timeout: float | None):
        self.handle, self._residency, self._timeout = handle, residency, timeout

    @cached_property
    def info(self) -> TaskInfo:
        """What the task is; where its package was not read yet, waits for it and raises what its load raises."""
        known = self._residency.info(self.handle.task.digest)
        return known or self.handle.wait(self._timeout or LOAD_SECONDS).info

    @property
    def is_known(self) -> bool:
        """Whether `info` says it at once, from now on: the package was read."""
        if "info" not in self.__dict__ and (known := self._residency.info(self.handle.task.digest)) is not None:
            self.info = known
        return "info" in self.__dict__

    def share(self) -> AcquiredTask:
        """A further reference to the task, to be released on its own; raises what `info` raises."""
        shared = AcquiredTask(self._residency, self.handle, self._timeout)
        shared.info = self.info
        self._residency.hold(self.handle)
        return shared

    def _give_back(self) -> None:
        self._residency.release(self.handle)


@dataclass(eq=False)
class Prepared(Holder):
    """A request that was checked and tokenised, with a reference to its task. The caller releases it, submitted or not:
    what was submitted has references of its own."""

    acquired: AcquiredTask | None  # None: the plain backbone
    timeout: float | None  # seconds that it may wait, from when it is submitted; None for as long as it takes
    tenant: Tenant = field(default=ANYONE, kw_only=True)  # who is charged for it; to be set before it is submitted

    @property
    def task(self) -> TaskInfo | None:
        """The very package that will answer; None for the plain backbone."""
        return None if self.acquired is None else self.acquired.info

    @property
    def handle(self) -> TaskHandle | None:
        """The task's handle; None for the plain backbone. Raises `UsageError` after `release`: the task may be gone."""
        if self._released:
            raise UsageError("a request that was released cannot be submitted", fix="submit it inside its with block")
        return None if self.acquired is None else self.acquired.handle

    def _give_back(self) -> None:
        if self.acquired is not None:
            self.acquired.release()


@dataclass(eq=False)
class PreparedRequest(Prepared):
    """Rows that were checked and tokenised. `Engine.prepare` makes it, `Engine.submit` queues it."""

    rows: list[Encoded]
    embed: bool  # whether pooled states are wanted, and not the head's answers

    @property
    def items(self) -> int:
        """Rows."""
        return len(self.rows)

    @cached_property
    def tokens(self) -> int:
        """Tokens of all rows, without padding."""
        return sum(row.tokens for row in self.rows)


@dataclass(frozen=True)
class PendingRequest(Generic[T]):
    """The answers of a submitted request, which come later; `Engine.submit` returns it at once."""

    futures: list[Future[T]]  # one per input, in order
    task: TaskInfo | None  # the very package that will answer; None for the plain backbone
    tokens: int  # of all inputs, without padding

    def results(self, timeout: float | None = None) -> list[T]:
        """The answers, in the order of the inputs; waits up to `timeout` seconds for each, and raises its error."""
        return [future.result(timeout) for future in self.futures]
