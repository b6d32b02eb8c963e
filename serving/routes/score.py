"""POST /v1/score, /score: one number per input; vLLM's shape. A regression's value, or the cosine of two embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request

from serving.protocol.errors import failed_item
from serving.protocol.request_model import as_list, truncation
from serving.protocol.tasks import ScoreItem, ScoreRequest, ScoreResponse
from serving.request.body import BodyRoute
from serving.request.many_tasks import ask_several
from serving.request.outcomes import ManyOutcomes, answers_of, failed_task
from serving.request.results import envelope
from serving.request.scoring import RegressionInputs, Score, scored, value_of
from serving.request.service import RunningService
from serving.request.task_lists import several
from sparsehub.errors import RequestError, SparsehubError
from sparsehub.task_ref import is_pattern

router = APIRouter(route_class=BodyRoute)


@router.post("/v1/score", response_model=ScoreResponse, response_model_exclude_unset=True)
@router.post("/score", response_model=ScoreResponse, response_model_exclude_unset=True)
async def score(body: ScoreRequest, request: Request, service: RunningService) -> ScoreResponse:
    """The number of a task, or of each of several, for every input; the plain backbone scores two texts by the cosine
    of their embeddings."""
    inputs, truncate = _inputs(body), truncation(body.truncate_prompt_tokens)
    if isinstance(body.model, list) or is_pattern(body.model):
        asked = [(model, RegressionInputs(model, inputs)) for model in several(service, body.model)]
        return _many(await ask_several(service, request, body.model, asked, len(inputs), truncate))
    ticket, scores = await scored(service, request, body.model, inputs, truncate)
    common = envelope("score", body.model, ticket.task, ticket.tokens)
    return ScoreResponse(**common, object="list", data=_items(scores))


def _many(found: ManyOutcomes) -> ScoreResponse:
    parts: list[Any] = [
        failed_task(index, its)
        if its.pending is None
        else answers_of(index, its, _items([value_of(answer) for answer in its.answers]), {})
        for index, its in enumerate(found.tasks)
    ]
    return ScoreResponse(**found.envelope("score"), data=parts)


def _items(scores: Sequence[Score]) -> list[Any]:
    return [
        failed_item(index, value)
        if isinstance(value, SparsehubError)
        else ScoreItem(index=index, object="score", score=value)
        for index, value in enumerate(scores)
    ]


def _inputs(body: ScoreRequest) -> list[Any]:
    if (body.input is None) == (body.text_1 is None):
        raise RequestError("give either input or text_1", expected="one of the two")
    if body.input is not None:
        return as_list(body.input)
    first, second = as_list(body.text_1), as_list(body.text_2) if body.text_2 is not None else None
    if second is None:
        return first
    if len(first) == 1:
        first = first * len(second)
    if len(first) != len(second):
        raise RequestError("text_1 and text_2 differ in length", found=f"{len(first)} and {len(second)}")
    return [list(pair) for pair in zip(first, second, strict=True)]
