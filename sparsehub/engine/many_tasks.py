"""One text, many tasks: the same inputs for several tasks, tokenised once where read alike, and queued together."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, Protocol

from sparsehub.engine.input_processor import KnownRows
from sparsehub.engine.pending_request import AcquiredTask, PendingRequest, PreparedRequest
from sparsehub.engine.task_registry import TaskInfo
from sparsehub.errors import SparsehubError
from sparsehub.package.outputs import Prediction
from sparsehub.task_ref import Reference


class Asked(Protocol):
    """What is asked here of an `Engine`."""

    def info(self, reference: Reference, timeout: float | None = None) -> TaskInfo:
        """What a task is; its package is read where that was not done before."""

    def acquire(self, reference: Reference, timeout: float | None = None) -> AcquiredTask:
        """Reference a task, and begin to load it."""

    def prepare(
        self,
        reference: Reference | AcquiredTask | None,
        inputs: Sequence[Any],
        *,
        embed: bool = False,
        truncate: bool | int = False,
        timeout: float | None = None,
        known: KnownRows | None = None,
    ) -> PreparedRequest:
        """Check and tokenise inputs."""

    def submit_all(self, requests: Sequence[PreparedRequest]) -> list[PendingRequest[Any]]:
        """Queue all rows or none."""


def ask_many(
    engine: Asked, references: Sequence[Reference], inputs: Sequence[Any], truncate: bool | int, timeout: float | None
) -> list[PendingRequest[Prediction] | SparsehubError]:
    """The work of `Engine.classify_many`."""
    known: KnownRows = {}
    errors = [unreadable(engine, reference, timeout) for reference in references]
    with ExitStack() as held:
        outcomes: list[PreparedRequest | SparsehubError] = []
        for reference, error in zip(references, errors, strict=True):
            try:
                if error is not None:
                    raise error
                task = held.enter_context(engine.acquire(reference, timeout))
                prepared = engine.prepare(task, inputs, truncate=truncate, timeout=timeout, known=known)
                outcomes.append(held.enter_context(prepared))
            except SparsehubError as failed:
                outcomes.append(failed)
        return submitted(engine, outcomes)


def unreadable(engine: Asked, reference: Reference, timeout: float | None) -> SparsehubError | None:
    """Why a task cannot be read; None where it was. Asked of all tasks of a request before it holds any: requests that
    hold some tasks and wait for others wait for each other where memory has no room for all of them."""
    try:
        engine.info(reference, timeout)
    except SparsehubError as error:
        return error
    return None


def submitted(
    engine: Asked, outcomes: Sequence[PreparedRequest | SparsehubError]
) -> list[PendingRequest[Any] | SparsehubError]:
    """Queue what could be prepared, all rows of it or none; the errors keep their places."""
    ready = [outcome for outcome in outcomes if isinstance(outcome, PreparedRequest)]
    pending = iter(engine.submit_all(ready) if ready else ())
    return [next(pending) if isinstance(outcome, PreparedRequest) else outcome for outcome in outcomes]


def tokens_once(requests: Sequence[PreparedRequest]) -> int:
    """Tokens of several requests for the same inputs as they run: once for all tasks that share layers and read the
    inputs alike, and once for each of the others."""
    shared = {id(prepared.rows): prepared.tokens for prepared in requests if _shares(prepared)}
    return sum(shared.values()) + sum(prepared.tokens for prepared in requests if not _shares(prepared))


def _shares(prepared: PreparedRequest) -> bool:
    return prepared.task is None or prepared.task.shares
