"""What a request for rows gets at once."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Generic, TypeVar

from sparsehub.engine.task_registry import TaskInfo

T = TypeVar("T")
Admit = Callable[[int], None]


@dataclass(frozen=True)
class PendingRequest(Generic[T]):
    """What a request gets at once. futures: one per input, in order; task: the very package that will answer."""

    futures: list[Future[T]]
    task: TaskInfo | None
    tokens: int

    def results(self, timeout: float | None = None) -> list[T]:
        """The answers, in the order of the inputs; waits up to `timeout` seconds for each, and raises its error."""
        return [future.result(timeout) for future in self.futures]
