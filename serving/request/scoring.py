"""One number for each input: a regression's value, or the cosine of two texts, by an embedding or the backbone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from anyio.to_thread import run_sync
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


@dataclass(frozen=True)
class _ScoredInputs(RegressionInputs):
    """Inputs of a task that gives numbers by itself, or by the vectors of two texts."""

    def rows(self, task: TaskInfo) -> Sequence[Any]:
        """The texts of the pairs, each once, where vectors answer: a query beside all its documents is run once."""
        return _distinct(self.model, self.inputs) if task.spec.kind == EMBEDDING else super().rows(task)


async def scored(
    service: Service, request: Request, model: str, inputs: Sequence[Any], truncate: bool | int
) -> tuple[PendingRequest[Any], list[Score]]:
    """Every input's number or its own error, in order; embeddings and the backbone take pairs of texts only."""
    if service.is_backbone(model):
        pending: PendingRequest[Any] = await service.embed(None, _distinct("the backbone", inputs), truncate)
    else:
        pending = await service.classify(model, _ScoredInputs(model, inputs), truncate, vectors=True)
    answers = await results(request, pending.futures)
    if pending.task is None or pending.task.spec.kind == EMBEDDING:
        return pending, await run_sync(_cosines, inputs, answers)  # a thousand take longer than others should wait
    return pending, [value_of(answer) for answer in answers]


def value_of(answer: Prediction | SparsehubError) -> Score:
    """A regression's number, or the error in its place."""
    return answer if isinstance(answer, SparsehubError) else cast(float, answer.value)


def _distinct(who: str, pairs: Sequence[Any]) -> list[str]:
    """The texts of pairs, each once; raises `RequestError` for anything else."""
    if any(not isinstance(pair, list) or len(pair) != 2 for pair in pairs):
        raise RequestError(f"{who} scores two texts", expected="text_1 and text_2")
    texts = [text for pair in pairs for text in pair]
    if not all(isinstance(text, str) for text in texts):
        raise RequestError("an input is no text", expected="two strings")
    return list(dict.fromkeys(texts))


def _cosines(pairs: Sequence[list[str]], found: Sequence[list[float] | SparsehubError]) -> list[Score]:
    """found: the vectors of the pairs' distinct texts, in order."""
    vectors = dict(zip(dict.fromkeys(text for pair in pairs for text in pair), found, strict=True))
    return [_cosine(vectors[first], vectors[second]) for first, second in pairs]


def _cosine(first: list[float] | SparsehubError, second: list[float] | SparsehubError) -> Score:
    if isinstance(first, SparsehubError):
        return first
    if isinstance(second, SparsehubError):
        return second
    dot = sum(a * b for a, b in zip(first, second, strict=True))
    return dot / (math.hypot(*first) * math.hypot(*second))
