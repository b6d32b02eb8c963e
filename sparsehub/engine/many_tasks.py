"""One text, many tasks: the same inputs for several tasks, tokenised once where read alike, and queued together."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Protocol

from sparsehub.engine.input_processor import KnownRows
from sparsehub.engine.pending_request import AcquiredTask, PendingRequest, PreparedRequest
from sparsehub.engine.task_handle import LOAD_SECONDS
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
        wanted = [error or reference for error, reference in zip(errors, references, strict=True)]
        for task in acquire_all(engine, wanted, timeout, held):
            try:
                if isinstance(task, SparsehubError):
                    raise task
                prepared = engine.prepare(task, inputs, truncate=truncate, timeout=timeout, known=known)
                outcomes.append(held.enter_context(prepared))
            except SparsehubError as failed:
                outcomes.append(failed)
        return submitted(engine, outcomes)


def acquire_all(
    engine: Asked, references: Sequence[Reference | SparsehubError | None], timeout: float | None, held: ExitStack
) -> list[AcquiredTask | SparsehubError | None]:
    """Reference tasks whose packages were read. Where one is another by now, or was forgotten, all are given back while
    it is read: a request that held the others meanwhile could wait for one that does the same, for ever.

    references: an error in the place of a task that cannot be asked, None of the plain backbone, which nobody holds;
    timeout: seconds for all that is read, None for a minute; held: gets the references.
    """
    wanted, end, known = list(references), time.monotonic() + (timeout or LOAD_SECONDS), dict[str, TaskInfo]()
    while True:
        with ExitStack() as stack:
            found = [_acquired(engine, reference, timeout, known, stack) for reference in wanted]
            unread = [i for i, task in enumerate(found) if isinstance(task, AcquiredTask) and not task.is_known]
            if not unread:
                held.enter_context(stack.pop_all())
                return found
        for i in unread:
            reference = wanted[i]
            assert reference is not None and not isinstance(reference, SparsehubError)  # it was acquired
            try:
                info = engine.info(reference, max(end - time.monotonic(), 0.001))
                known[info.digest] = info
            except SparsehubError as error:
                wanted[i] = error


def _acquired(
    engine: Asked,
    reference: Reference | SparsehubError | None,
    timeout: float | None,
    known: Mapping[str, TaskInfo],
    held: ExitStack,
) -> AcquiredTask | SparsehubError | None:
    """known: by digest, what was read."""
    if reference is None or isinstance(reference, SparsehubError):
        return reference
    try:
        task = held.enter_context(engine.acquire(reference, timeout))
    except SparsehubError as error:
        return error
    if (info := known.get(task.handle.task.digest)) is not None:
        task.info = info
    return task


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
