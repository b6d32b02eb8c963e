"""POST /v1/score: one number per input; vLLM's shape. A regression's value, or the cosine of two embeddings."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from serving.answering import failed_item, results
from serving.wire import ScoreBody, as_list, envelope
from sparsehub.errors import RequestError, SparsehubError
from sparsehub.package.manifest import REGRESSION

router = APIRouter()


@router.post("/v1/score")
async def score(body: ScoreBody, request: Request) -> dict[str, Any]:
    """The task's number for every input; the plain backbone scores two texts by the cosine of their embeddings."""
    service = request.app.state.service
    if service.is_backbone(body.model):
        return await _cosine(body, request)
    if (await service.info(body.model)).spec.kind != REGRESSION:
        raise RequestError(f"{body.model} gives labels, not a number", fix="post to /v1/classify")
    ticket = await service.submit(service.engine.classify, body.model, _inputs(body), body.truncate)
    answers = await results(request, ticket.futures)
    data = [
        failed_item(i, a) if isinstance(a, SparsehubError) else {"index": i, "object": "score", "score": a.value}
        for i, a in enumerate(answers)
    ]
    return envelope("score", body, ticket, data)


async def _cosine(body: ScoreBody, request: Request) -> dict[str, Any]:
    service = request.app.state.service
    pairs = _inputs(body)
    if any(not isinstance(pair, list) or len(pair) != 2 for pair in pairs):
        raise RequestError("the backbone scores two texts", expected="text_1 and text_2")
    texts = [text for pair in pairs for text in pair]
    ticket = await service.submit(service.engine.embed, None, texts, body.truncate)
    vectors = await results(request, ticket.futures)
    couples = zip(vectors[::2], vectors[1::2], strict=True)
    data = [_dot(index, first, second) for index, (first, second) in enumerate(couples)]
    return envelope("score", body, ticket, data)


def _dot(index: int, first: list[float] | SparsehubError, second: list[float] | SparsehubError) -> dict[str, Any]:
    if isinstance(first, SparsehubError):
        return failed_item(index, first)
    if isinstance(second, SparsehubError):
        return failed_item(index, second)
    return {"index": index, "object": "score", "score": sum(a * b for a, b in zip(first, second, strict=True))}


def _inputs(body: ScoreBody) -> list[Any]:
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
