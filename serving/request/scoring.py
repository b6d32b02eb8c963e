"""One number for each input: a regression's value, or the cosine of two texts, by an embedding or the backbone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from fastapi import Request

from serving.request.results import results
from serving.request.service import Service
from sparsehub.engine import PendingRequest, TaskInfo
from sparsehub.errors import RequestError, SparsehubError
from sparsehub.package.outputs import Prediction
from sparsehub.package.task_spec import EMBEDDING, REGRESSION

Score = float | SparsehubError


@dataclass(frozen=True)
class RegressionInputs:
    """Inputs of a regression."""

    model: str
    inputs: Sequence[Any]

    def rows(self, task: TaskInfo) -> Sequence[Any]:
        """Raises `RequestError` for a task that gives labels."""
        if task.spec.kind == EMBEDDING:
            raise RequestError(f"{self.model} scores two texts by their vectors", fix="ask it alone, not among others")
        if task.spec.kind != REGRESSION:
            raise RequestError(f"{self.model} gives labels, not a number", fix="post to /v1/classify")
        return self.inputs


async def scored(
    service: Service, request: Request, model: str, inputs: Sequence[Any], truncate: bool | int
) -> tuple[PendingRequest[Any], list[Score]]:
    """Every input's number or its own error, in order; embeddings and the backbone take pairs of texts only."""
    if service.is_backbone(model):
        return await _cosines(service, request, None, inputs, truncate)
    if (await service.info(model)).spec.kind == EMBEDDING:
        return await _cosines(service, request, model, inputs, truncate)
    pending = await service.classify(model, RegressionInputs(model, inputs), truncate)
    answers = await results(request, pending.futures)
    return pending, [value_of(answer) for answer in answers]


def value_of(answer: Prediction | SparsehubError) -> Score:
    """A regression's number, or the error in its place."""
    return answer if isinstance(answer, SparsehubError) else cast(float, answer.value)


async def _cosines(
    service: Service, request: Request, model: str | None, pairs: Sequence[Any], truncate: bool | int
) -> tuple[PendingRequest[Any], list[Score]]:
    if any(not isinstance(pair, list) or len(pair) != 2 for pair in pairs):
        problem = f"{model or 'the backbone'} scores two texts"
        raise RequestError(problem, expected="text_1 and text_2")
    texts = [text for pair in pairs for text in pair]
    if not all(isinstance(text, str) for text in texts):
        raise RequestError("an input is no text", expected="two strings")
    distinct = list(dict.fromkeys(texts))  # a query beside all its documents is run once
    pending = await service.embed(model, distinct, truncate)
    found = await results(request, pending.futures)
    vectors = dict(zip(distinct, found, strict=True))
    return pending, [_cosine(vectors[first], vectors[second]) for first, second in pairs]


def _cosine(first: list[float] | SparsehubError, second: list[float] | SparsehubError) -> Score:
    if isinstance(first, SparsehubError):
        return first
    if isinstance(second, SparsehubError):
        return second
    dot = sum(a * b for a, b in zip(first, second, strict=True))
    return dot / (math.hypot(*first) * math.hypot(*second))
