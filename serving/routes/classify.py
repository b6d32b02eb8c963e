"""POST /v1/classify, /classify: labels and probabilities; vLLM's shape, with one entry per word for token
classification, each with its place in the text, and a set of labels for multi-label. Of one task, or of several for the
same inputs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request

from serving.protocol.errors import FailedItem, failed_item
from serving.protocol.request_model import as_list, truncation
from serving.protocol.tasks import (
    Classification,
    ClassifyRequest,
    ClassifyResponse,
    LabelSet,
    TaggedText,
    TaggedWord,
)
from serving.request.body import BodyRoute
from serving.request.many_tasks import ask_several
from serving.request.outcomes import ManyOutcomes, answers_of, failed_task
from serving.request.results import envelope, results
from serving.request.service import RunningService
from serving.request.task_lists import several
from sparsehub.engine import TaskInfo
from sparsehub.errors import RequestError, SparsehubError
from sparsehub.package.outputs import Prediction
from sparsehub.package.task_spec import REGRESSION
from sparsehub.task_ref import is_pattern

router = APIRouter(route_class=BodyRoute)
_WORD = re.compile(r"\S+")


@dataclass(frozen=True)
class _LabelledInputs:
    """Inputs of a task that gives labels."""

    model: str
    inputs: list[Any]

    def rows(self, task: TaskInfo) -> list[Any]:
        """Raises `RequestError` for a task that gives a number."""
        if task.spec.kind == REGRESSION:
            raise RequestError(f"{self.model} gives a number, not a label", fix="post to /v1/score")
        return self.inputs


@router.post("/v1/classify", response_model=ClassifyResponse, response_model_exclude_unset=True)
@router.post("/classify", response_model=ClassifyResponse, response_model_exclude_unset=True)
async def classify(body: ClassifyRequest, request: Request, service: RunningService) -> ClassifyResponse:
    """One answer per input, from the task that `model` names; or from each of several tasks."""
    inputs, truncate = as_list(body.input), truncation(body.truncate_prompt_tokens)
    if isinstance(body.model, list) or is_pattern(body.model):
        asked = [(model, _LabelledInputs(model, inputs)) for model in several(service, body.model)]
        return _many(inputs, await ask_several(service, request, body.model, asked, len(inputs), truncate))
    ticket = await service.classify(body.model, _LabelledInputs(body.model, inputs), truncate)
    assert ticket.task is not None  # the plain backbone has no labels
    answers = await results(request, ticket.futures)
    common = envelope("classify", body.model, ticket.task, ticket.tokens)
    fields = {**common, **labels_of(ticket.task)}
    return ClassifyResponse(**fields, object="list", data=_items(inputs, answers))


def _many(inputs: Sequence[Any], found: ManyOutcomes) -> ClassifyResponse:
    parts: list[Any] = [
        failed_task(index, its)
        if its.pending is None or its.pending.task is None
        else answers_of(index, its, _items(inputs, its.answers), labels_of(its.pending.task))
        for index, its in enumerate(found.tasks)
    ]
    return ClassifyResponse(**found.envelope("classify"), data=parts)


def labels_of(task: TaskInfo) -> dict[str, Any]:
    """What stands beside a task's answers: its labels, and the thresholds of those that are given by one each."""
    thresholds = {"thresholds": list(task.spec.thresholds)} if task.spec.thresholds else {}
    return {"labels": list(task.spec.labels), **thresholds}


def _items(inputs: Sequence[Any], answers: Sequence[Prediction | SparsehubError]) -> list[Any]:
    return [_item(i, item, answer) for i, (item, answer) in enumerate(zip(inputs, answers, strict=True))]


def _item(
    index: int, item: Any, answer: Prediction | SparsehubError
) -> Classification | LabelSet | TaggedText | FailedItem:
    if isinstance(answer, SparsehubError):
        return failed_item(index, answer)
    if answer.words:
        return TaggedText(index=index, words=tagged_words(item, answer))
    if answer.labels is not None:
        return LabelSet(index=index, labels=answer.labels, probs=answer.scores, num_classes=len(answer.scores))
    return Classification(index=index, **_label_of(answer))


def tagged_words(item: Any, answer: Prediction) -> list[TaggedWord]:
    """Every word with its label. start, end: characters of the text, where the input was a text and no list of words.

    Words that were cut off, where the request lets inputs be cut, have no entry.
    """
    text = next(iter(item.values())) if isinstance(item, dict) else item
    places: Iterator[dict[str, Any]]  # taken one by one: what was cut off may be long
    if isinstance(text, str):
        places = ({"word": m[0], "start": m.start(), "end": m.end()} for m in _WORD.finditer(text))
    else:
        places = ({"word": word} for word in text)
    words: list[Any] = [{**place, **_label_of(word)} for place, word in zip(places, answer.words, strict=False)]
    return words  # which `TaggedText` checks


def _label_of(answer: Prediction) -> dict[str, Any]:
    return {"label": answer.label, "probs": answer.scores, "num_classes": len(answer.scores)}
