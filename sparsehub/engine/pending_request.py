"""A request on its way through the engine: its task held, then prepared, then waiting for its answers."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass
from functools import cached_property
from types import TracebackType
from typing import Generic, Self, TypeVar

from sparsehub.engine.residency import Residency
from sparsehub.engine.task_handle import LOAD_SECONDS, TaskHandle
from sparsehub.engine.task_registry import TaskInfo
from sparsehub.errors import UsageError
from sparsehub.package.encoding import Encoded

T = TypeVar("T")


class Holder:
    """Something that holds a task, and gives it back with `release` or at the end of its `with`."""

    _released = False

    def release(self) -> None:
        """Hold nothing any more; a second call does nothing."""
        if not self._released:
            self._released = True
            self._give_back()

    def _give_back(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class AcquiredTask(Holder):
    """A task that stays in memory, or is being loaded, until it is released. `Engine.acquire` gives it."""

    def __init__(self, residency: Residency, handle: TaskHandle, timeout: float | None):
        """residency: holds `handle` for this object already; timeout: seconds that a load may take."""
        self.handle, self._residency, self._timeout = handle, residency, timeout

    @cached_property
    def info(self) -> TaskInfo:
        """What the task is; where its package was not read yet, waits for it and raises what its load raises."""
        known = self._residency.info(self.handle.task.digest)
        return known or self.handle.wait(self._timeout or LOAD_SECONDS).info

    def share(self) -> AcquiredTask:
        """The same task held once more, to be released on its own; raises what `info` raises."""
        shared = AcquiredTask(self._residency, self.handle, self._timeout)
        shared.info = self.info
        self._residency.hold(self.handle)
        return shared

    def _give_back(self) -> None:
        self._residency.release(self.handle)


@dataclass(eq=False)
class Prepared(Holder):
    """A request that was checked and tokenised, with a hold on its task. It is given back by `release`, whether the
    request was submitted or not: what was submitted holds the task on its own."""

    acquired: AcquiredTask | None  # None: the plain backbone
    timeout: float | None  # seconds that it may wait, from when it is submitted; None for as long as it takes

    @property
    def task(self) -> TaskInfo | None:
        """The very package that will answer; None for the plain backbone."""
        return None if self.acquired is None else self.acquired.info

    @property
    def handle(self) -> TaskHandle | None:
        """What is held, None for the plain backbone; raises `UsageError` after `release`: the task may be gone."""
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
    embed: bool  # pooled states are wanted, not the task's head

    @property
    def items(self) -> int:
        return len(self.rows)

    @cached_property
    def tokens(self) -> int:
        """Tokens of all rows, without padding."""
        return sum(row.tokens for row in self.rows)


@dataclass(frozen=True)
class PendingRequest(Generic[T]):
    """What a submitted request gets at once."""

    futures: list[Future[T]]  # one per input, in order
    task: TaskInfo | None  # the very package that will answer; None for the plain backbone
    tokens: int  # of all inputs, without padding

    def results(self, timeout: float | None = None) -> list[T]:
        """The answers, in the order of the inputs; waits up to `timeout` seconds for each, and raises its error."""
        return [future.result(timeout) for future in self.futures]
