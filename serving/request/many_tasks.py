"""One request, many tasks: the same inputs for each of them, with access, limits and failures as if each were asked
alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from anyio.to_thread import run_sync
from fastapi import Request
from typing_extensions import override

from serving.catalog.router import Routed
from serving.protocol.errors import status_of
from serving.request.context import AnsweredTask, RequestContext, current_request
from serving.request.limits import check_fan_out, check_items, check_size, take_items, take_key_tokens, take_quota
from serving.request.outcomes import ManyOutcomes, Outcome, outcome_of
from serving.request.results import results
from serving.request.service import Service, TaskInputs, discreet
from serving.request.task_lists import TaskReader
from sparsehub.engine import AcquiredTask, PendingRequest, PreparedRequest, TaskInfo
from sparsehub.engine.input_processor import KnownRows
from sparsehub.engine.many_tasks import acquire_all, submitted, tokens_once
from sparsehub.errors import SparsehubError, UnknownTaskError
from sparsehub.task_ref import BACKBONE, parse_model

MOST_HINTS = 8  # unknown tasks of one request for which a similar name is looked for


class SharedInputs(ABC):
    """Inputs of a request that the plain backbone may be asked too, by its name in the list."""

    @abstractmethod
    def rows(self, task: TaskInfo | None) -> Sequence[Any]:
        """One row per input; raises `RequestError` where they are not for such a task. None: the plain backbone."""

    @abstractmethod
    def embeds(self, task: TaskInfo | None) -> bool:
        """Whether vectors are wanted, and not the answers of the task's head."""


@dataclass(frozen=True)
class Texts(SharedInputs):
    """Texts whose vectors are wanted."""

    texts: Sequence[Any]

    @override
    def rows(self, task: TaskInfo | None) -> Sequence[Any]:
        """The same for all."""
        return self.texts

    @override
    def embeds(self, task: TaskInfo | None) -> bool:
        """Of all."""
        return True


AnyInputs = TaskInputs | SharedInputs


async def ask_several(
    service: Service,
    request: Request,
    model: str | list[str],
    asked: Sequence[tuple[str, AnyInputs]],
    rows: int,
    truncate: bool | int,
    *,
    whole: bool = False,
) -> ManyOutcomes:
    """Ask each task, and wait for all answers. A task that cannot be asked fails alone; raises `ForbiddenError` for the
    whole request where one of them is not the caller's, `RequestError` where they are too many, what `results` raises,
    and the first error where all failed.

    asked: each task with its inputs, which do not differ but in what they say of errors; rows: of each task; whole:
    whether a task fails where one of its inputs does.
    """
    call = current_request()
    references = [_reference(service, name, inputs) for name, inputs in asked]
    call.caller.check_tasks(name for reference in references for name in _names(reference))
    check_fan_out(service.settings, len(asked), rows)
    batch = _Batch(service, call, truncate)
    pending = await run_sync(batch.submit, references, [inputs for _, inputs in asked])
    futures = [future for its in pending if isinstance(its, PendingRequest) for future in its.futures]
    if not futures:
        raise next(its for its in pending if isinstance(its, SparsehubError))
    answers = iter(await results(request, futures))
    outcomes = [outcome_of(name, its, answers, whole) for (name, _), its in zip(asked, pending, strict=True)]
    batch.note_failures(outcomes)
    if all(outcome.error is not None for outcome in outcomes):
        raise next(outcome.error for outcome in outcomes if outcome.error is not None)
    return ManyOutcomes(model, outcomes, batch.tokens)


def _reference(service: Service, model: str, inputs: AnyInputs) -> str | None:
    """None for the plain backbone, which gives vectors only."""
    return None if isinstance(inputs, SharedInputs) and service.is_backbone(model) else model


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
        self._reader, self._unknown = TaskReader(service), 0
        self._known: KnownRows = {}  # what was tokenised for a task of this request
        self._noted: list[AnsweredTask | None] = []  # by task; None of the plain backbone, and of what is not known
        self.tokens = 0  # that all of it runs

    def submit(
        self, references: Sequence[str | None], inputs: Sequence[AnyInputs]
    ) -> list[PendingRequest[Any] | SparsehubError]:
        """What each task has pending, or why it fails alone. All rows are queued, or none."""
        with ExitStack() as held:
            routed = [self._route(reference) for reference in references]
            acquired = self._acquire(routed, held)
            parts = [self._prepare(task, its, held) for task, its in zip(acquired, inputs, strict=True)]
            self._noted = [self._note(its) for its in acquired]
            ready = [part for part in parts if isinstance(part, _Ready)]
            check_items(self._service.settings, sum(part.prepared.items for part in ready))
            least = max((part.sent for part in ready), default=0)
            running = tokens_once([part.prepared for part in ready])
            take_key_tokens(self._service.settings, self._call, max(running, least))
            charged = [_charged(part) for part in parts]
            pending = submitted(self._service.engine, charged)
            self.tokens = tokens_once([part for part in charged if isinstance(part, PreparedRequest)])
        self._count(pending)
        return pending

    def _route(self, reference: str | None) -> Routed | SparsehubError:
        """What a task means for this request, its package read; of the plain backbone there is none."""
        if reference is not None and self._unknown >= MOST_HINTS and not self._reader.serves(parse_model(reference)):
            return _unknown_task(reference)
        try:
            with discreet(self._call, reference or BACKBONE):
                if reference is not None:
                    self._service.check_head(self._call, reference)
                routed = self._service.resolve(self._call, reference)
                if routed.model is not None:
                    self._reader.read(routed.model)
        except SparsehubError as error:
            self._unknown += isinstance(error, UnknownTaskError)
            return error
        return routed

    def _acquire(
        self, routed: Sequence[Routed | SparsehubError], held: ExitStack
    ) -> list[tuple[Routed, AcquiredTask | None] | SparsehubError]:
        """Every task, referenced; of the plain backbone there is nothing to hold."""
        wanted = [its if isinstance(its, SparsehubError) else its.model for its in routed]
        found = acquire_all(self._service.engine, wanted, self._service.settings.timeout, held)
        return [_with_route(route, task) for route, task in zip(routed, found, strict=True)]

    def _prepare(
        self,
        acquired: tuple[Routed, AcquiredTask | None] | SparsehubError,
        inputs: AnyInputs,
        held: ExitStack,
    ) -> _Ready | SparsehubError:
        if isinstance(acquired, SparsehubError):
            return acquired
        (routed, task), settings = acquired, self._service.settings
        options: dict[str, Any] = {"truncate": self._truncate, "timeout": settings.timeout, "known": self._known}
        try:
            rows, embed = _rows(inputs, None if task is None else task.info)
            check_items(settings, len(rows))
            sent = check_size(settings, rows)
            prepared = self._service.engine.prepare(task, rows, embed=embed, **options)
        except SparsehubError as error:
            return error
        prepared.tenant = self._call.tenant
        return _Ready(routed, held.enter_context(prepared), sent)

    def _note(self, acquired: tuple[Routed, AcquiredTask | None] | SparsehubError) -> AnsweredTask | None:
        """A task counts as asked from when it is known, whatever becomes of the request."""
        if isinstance(acquired, SparsehubError) or (task := acquired[1]) is None or (info := _known_info(task)) is None:
            return None
        noted = AnsweredTask(info, 0, 0)
        self._call.several.append(noted)
        return noted

    def _count(self, pending: Sequence[PendingRequest[Any] | SparsehubError]) -> None:
        """Note what was submitted, task by task."""
        for noted, its in zip(self._noted, pending, strict=True):
            if noted is not None and isinstance(its, SparsehubError):
                noted.status = status_of(its)
            elif noted is not None and isinstance(its, PendingRequest):
                noted.items, noted.tokens = len(its.futures), its.tokens
        self._call.items = sum(len(its.futures) for its in pending if isinstance(its, PendingRequest))
        self._call.tokens = self.tokens

    def note_failures(self, outcomes: Sequence[Outcome]) -> None:
        """A task all of whose inputs failed has failed as it would have alone."""
        for noted, outcome in zip(self._noted, outcomes, strict=True):
            failed = [answer for answer in outcome.answers if isinstance(answer, SparsehubError)]
            error = outcome.error or (failed[0] if failed and len(failed) == len(outcome.answers) else None)
            if noted is not None and error is not None:
                noted.status = status_of(error)


def _rows(inputs: AnyInputs, task: TaskInfo | None) -> tuple[Sequence[Any], bool]:
    """What a task, or the plain backbone, reads of the inputs, and whether it is asked for vectors."""
    if isinstance(inputs, SharedInputs):
        return inputs.rows(task), inputs.embeds(task)
    assert task is not None  # the plain backbone gives vectors only
    return inputs.rows(task), False


def _with_route(
    routed: Routed | SparsehubError, task: AcquiredTask | SparsehubError | None
) -> tuple[Routed, AcquiredTask | None] | SparsehubError:
    if isinstance(routed, SparsehubError):
        return routed
    if isinstance(task, UnknownTaskError):  # it was removed a moment ago
        return _unknown_task(str(routed.model))
    return task if isinstance(task, SparsehubError) else (routed, task)


def _unknown_task(reference: str) -> UnknownTaskError:
    return UnknownTaskError(f"unknown task {reference[:200]!r}")


def _known_info(task: AcquiredTask) -> TaskInfo | None:
    """What is known of a task without waiting for it."""
    found: TaskInfo | None = task.__dict__.get("info")
    return found


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
