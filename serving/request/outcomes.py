"""What became of the tasks of one request, for the routes that answer it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from serving.protocol.errors import error_detail
from serving.protocol.tasks import FailedTask, TaskAnswers
from serving.request.results import envelope, first_failure, usage_of
from sparsehub.engine import PendingRequest
from sparsehub.errors import SparsehubError


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


def outcome_of(name: str, its: PendingRequest[Any] | SparsehubError, answers: Iterator[Any], whole: bool) -> Outcome:
    """What became of one task. its: what it has pending, or why it could not be asked; answers: of all tasks, of which
    this takes its own; whole: whether one failed input fails it."""
    if isinstance(its, SparsehubError):
        return Outcome(name, None, (), its)
    own = [next(answers) for _ in its.futures]
    error = first_failure(own) if whole else None
    return Outcome(name, its, own) if error is None else Outcome(name, None, (), error)
