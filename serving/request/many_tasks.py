"""One request, many tasks: the same inputs for each of them, with access, limits and failures as if each were asked
alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from anyio.to_thread import run_sync
from fastapi import Request

from serving.catalog.router import Routed
from serving.protocol.errors import error_detail, status_of
from serving.protocol.tasks import FailedTask, TaskAnswers
from serving.request.context import AnsweredTask, RequestContext, current_request
from serving.request.limits import check_items, check_size, take_items, take_key_tokens, take_quota
from serving.request.results import envelope, results, usage_of
from serving.request.service import Service, TaskInputs, discreet
from sparsehub.engine import AcquiredTask, PendingRequest, PreparedRequest, TaskInfo
from sparsehub.engine.input_processor import KnownRows
from sparsehub.engine.many_tasks import submitted, tokens_once, unreadable
from sparsehub.errors import SparsehubError, UnknownTaskError
from sparsehub.task_ref import BACKBONE, parse_model


@dataclass(frozen=True)
class Texts:
    """Inputs whose vectors are wanted, of any task or of the plain backbone."""

    texts: Sequence[Any]


@dataclass(frozen=True)
class Outcome:
    """What became of one task of a request."""

    model: str
    pending: PendingRequest[Any] | None  # None where it failed as a whole
    answers: Sequence[Any]  # of each input, an answer or an error
    error: SparsehubError | None = None


@dataclass(frozen=True)
class ManyOutcomes:
    """What became of all tasks of a request."""

    model: str | list[str]  # as the request said it
    tasks: Sequence[Outcome]
    tokens: int  # as they ran (`tokens_once`)

    def envelope(self, kind: str) -> dict[str, Any]:
        """The fields that the response has beside `data`. kind: what its id begins with."""
        common = envelope(kind, "", None, self.tokens)
        return {**common, "model": self.model, "object": "list"}


def answers_of(index: int, outcome: Outcome, data: Sequence[Any], about: Mapping[str, Any]) -> TaskAnswers:
    """One task's part of the response. data: its items, in the form of its route; about: further fields."""
    assert outcome.pending is not None  # it has answers
    task = outcome.pending.task
    fields: dict[str, Any] = {"index": index, "object": "task_answers", "model": outcome.model}
    if task is not None:
        fields |= {"task": task.reference, "version": task.version, "digest": task.digest}
    return TaskAnswers(**fields, **about, data=list(data), usage=usage_of(outcome.pending.tokens))


def failed_task(index: int, outcome: Outcome) -> FailedTask:
    """The part of a task that failed as a whole."""
    assert outcome.error is not None
    return FailedTask(index=index, model=outcome.model, error=error_detail(outcome.error))


def several(service: Service, model: str | list[str]) -> list[str]:
    """The tasks that a list or a pattern means. Raises `UnknownTaskError` for a pattern that fits none of the caller's
    tasks."""
    if isinstance(model, list):
        return model
    caller, known = current_request().caller, service.router.names
    names = known if known is not None else {task.name for task in service.engine.tasks.all()}
    found = sorted(name for name in names if fnmatchcase(name, model) and caller.may_ask(name))
    if not found:
        raise UnknownTaskError(f"no task of the caller's is called {model[:200]!r}")
    return found


async def ask_several(
    service: Service,
    request: Request,
    model: str | list[str],
    asked: Sequence[tuple[str, TaskInputs | Texts]],
    truncate: bool | int,
) -> ManyOutcomes:
    """Ask each task, and wait for all answers. A task that cannot be asked fails alone; raises `ForbiddenError` for the
    whole request where one of them is not the caller's, what `results` raises, and the first error where all failed.

    asked: each task with its inputs, which do not differ but in what they say of errors.
    """
    call = current_request()
    references = [_reference(service, name, inputs) for name, inputs in asked]
    call.caller.check_tasks(name for reference in references for name in _names(reference))
    batch = _Batch(service, call, truncate)
    pending = await run_sync(batch.submit, references, [inputs for _, inputs in asked])
    futures = [future for its in pending if isinstance(its, PendingRequest) for future in its.futures]
    if not futures:
        raise next(its for its in pending if isinstance(its, SparsehubError))
    answers = iter(await results(request, futures))
    outcomes = []
    for (name, _), its in zip(asked, pending, strict=True):
        if isinstance(its, SparsehubError):
            outcomes.append(Outcome(name, None, (), its))
        else:
            outcomes.append(Outcome(name, its, [next(answers) for _ in its.futures]))
    return ManyOutcomes(model, outcomes, batch.tokens)


def _reference(service: Service, model: str, inputs: TaskInputs | Texts) -> str | None:
    """None for the plain backbone, which gives vectors only."""
    return None if isinstance(inputs, Texts) and service.is_backbone(model) else model


def _names(reference: str | None) -> tuple[str, ...]:
    return (BACKBONE,) if reference is None else parse_model(reference).names


@dataclass(frozen=True)
class _Ready:
    """A task's part of a request that can be queued."""

    routed: Routed
    prepared: PreparedRequest
    sent: int  # tokens that are charged at least, even where less is left after a cut


class _Batch:
    """The tasks of one request on their way into the queue; its methods run in a worker thread."""

    def __init__(self, service: Service, call: RequestContext, truncate: bool | int):
        self._service, self._call, self._truncate = service, call, truncate
        self._known: KnownRows = {}  # what was tokenised for a task of this request
        self.tokens = 0  # that all of it runs

    def submit(
        self, references: Sequence[str | None], inputs: Sequence[TaskInputs | Texts]
    ) -> list[PendingRequest[Any] | SparsehubError]:
        """What each task has pending, or why it fails alone. All rows are queued, or none."""
        with ExitStack() as held:
            routed = [self._route(reference) for reference in references]
            acquired = [self._acquire(route, held) for route in routed]
            parts = [self._prepare(task, its, held) for task, its in zip(acquired, inputs, strict=True)]
            ready = [part for part in parts if isinstance(part, _Ready)]
            check_items(self._service.settings, sum(part.prepared.items for part in ready))
            self.tokens = tokens_once([part.prepared for part in ready])
            least = max((part.sent for part in ready), default=0)
            take_key_tokens(self._service.settings, self._call, max(self.tokens, least))
            pending = submitted(self._service.engine, [_charged(part) for part in parts])
        self._count(acquired, pending)
        return pending

    def _route(self, reference: str | None) -> Routed | SparsehubError:
        """What a task means for this request, its package read; of the plain backbone there is none."""
        engine, timeout = self._service.engine, self._service.settings.timeout
        try:
            with discreet(self._call, reference or BACKBONE):
                routed = self._service.resolve(self._call, reference)
                error = None if routed.model is None else unreadable(engine, routed.model, timeout)
                if error is not None:
                    raise error
        except SparsehubError as failed:
            return failed
        return routed

    def _acquire(
        self, routed: Routed | SparsehubError, held: ExitStack
    ) -> tuple[Routed, AcquiredTask | None] | SparsehubError:
        """A task, referenced; of the plain backbone there is nothing to hold."""
        if isinstance(routed, SparsehubError):
            return routed
        engine, timeout, model = self._service.engine, self._service.settings.timeout, routed.model
        try:
            return routed, None if model is None else held.enter_context(engine.acquire(model, timeout))
        except UnknownTaskError:  # it was removed a moment ago
            return UnknownTaskError(f"unknown task {str(model)[:200]!r}")
        except SparsehubError as error:
            return error

    def _prepare(
        self,
        acquired: tuple[Routed, AcquiredTask | None] | SparsehubError,
        inputs: TaskInputs | Texts,
        held: ExitStack,
    ) -> _Ready | SparsehubError:
        if isinstance(acquired, SparsehubError):
            return acquired
        (routed, task), settings = acquired, self._service.settings
        options: dict[str, Any] = {"truncate": self._truncate, "timeout": settings.timeout, "known": self._known}
        try:
            rows = _rows(inputs, task)
            check_items(settings, len(rows))
            sent = check_size(settings, rows)
            prepared = self._service.engine.prepare(task, rows, embed=isinstance(inputs, Texts), **options)
        except SparsehubError as error:
            return error
        prepared.tenant = self._call.tenant
        return _Ready(routed, held.enter_context(prepared), sent)

    def _count(
        self,
        acquired: Sequence[tuple[Routed, AcquiredTask | None] | SparsehubError],
        pending: Sequence[PendingRequest[Any] | SparsehubError],
    ) -> None:
        """Note what was submitted, task by task; of the plain backbone, and of what is not known, there is no task."""
        for task, its in zip(acquired, pending, strict=True):
            if isinstance(its, PendingRequest):
                if its.task is not None:
                    self._call.several.append(AnsweredTask(its.task, len(its.futures), its.tokens))
            elif not isinstance(task, SparsehubError) and (info := _known_info(task[1])) is not None:
                self._call.several.append(AnsweredTask(info, 0, 0, status_of(its)))
        self._call.items = sum(len(its.futures) for its in pending if isinstance(its, PendingRequest))
        self._call.tokens = self.tokens


def _rows(inputs: TaskInputs | Texts, task: AcquiredTask | None) -> Sequence[Any]:
    if isinstance(inputs, Texts):
        return inputs.texts
    assert task is not None  # the plain backbone gives vectors only
    return inputs.rows(task.info)


def _known_info(task: AcquiredTask | None) -> TaskInfo | None:
    """What is known of a task without waiting for it."""
    return None if task is None else task.__dict__.get("info")


def _charged(part: _Ready | SparsehubError) -> PreparedRequest | SparsehubError:
    """A task's quotas are charged as if it were asked alone, and it fails alone where they are used up."""
    if isinstance(part, SparsehubError):
        return part
    try:
        take_items(part.routed, part.prepared.items)
        take_quota(part.routed, max(part.prepared.tokens, part.sent))
    except SparsehubError as error:
        return error
    return part.prepared
