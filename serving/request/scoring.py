"""One number for each input: a regression's value, or on the plain backbone the cosine of two texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import Request

from serving.request.results import results
from sparsehub.engine import PendingRequest
from sparsehub.errors import RequestError, SparsehubError
from sparsehub.package.manifest import REGRESSION

Score = float | SparsehubError


async def scored(
    request: Request, model: str, inputs: Sequence[Any], truncate: bool
) -> tuple[PendingRequest[Any], list[Score]]:
    """Every input's number or its own error, in order; the backbone takes pairs of texts only."""
    service = request.app.state.service
    if service.is_backbone(model):
        return await _cosines(request, inputs, truncate)
    if (await service.info(model)).spec.kind != REGRESSION:
        raise RequestError(f"{model} gives labels, not a number", fix="post to /v1/classify")
    ticket = await service.submit(service.engine.classify, model, inputs, truncate)
    answers = await results(request, ticket.futures)
    return ticket, [answer if isinstance(answer, SparsehubError) else answer.value for answer in answers]


async def _cosines(request: Request, pairs: Sequence[Any], truncate: bool) -> tuple[PendingRequest[Any], list[Score]]:
    service = request.app.state.service
    if any(not isinstance(pair, list) or len(pair) != 2 for pair in pairs):
        raise RequestError("the backbone scores two texts", expected="text_1 and text_2")
    texts = [text for pair in pairs for text in pair]
    if not all(isinstance(text, str) for text in texts):
        raise RequestError("an input is no text", expected="two strings")
    distinct = list(dict.fromkeys(texts))  # a query beside all its documents is run once
    ticket = await service.submit(service.engine.embed, None, distinct, truncate)
    vectors = dict(zip(distinct, await results(request, ticket.futures), strict=True))
    return ticket, [_dot(vectors[first], vectors[second]) for first, second in pairs]


def _dot(first: list[float] | SparsehubError, second: list[float] | SparsehubError) -> Score:
    if isinstance(first, SparsehubError):
        return first
    if isinstance(second, SparsehubError):
        return second
    return sum(a * b for a, b in zip(first, second, strict=True))
