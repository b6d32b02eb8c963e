"""POST /v1/embeddings: unit vectors; OpenAI's shape. `model` is a task, or the backbone's id for the plain backbone."""

from __future__ import annotations

import base64
import struct
from collections.abc import Callable, Sequence
from typing import Any

from fastapi import APIRouter, Request

from serving.protocol.errors import failed_item
from serving.protocol.request_model import UnsupportedFieldError, truncation
from serving.protocol.tasks import EmbeddingItem, EmbeddingsRequest, EmbeddingsResponse
from serving.request.body import BodyRoute
from serving.request.many_tasks import Texts, ask_several
from serving.request.outcomes import ManyOutcomes, answers_of, failed_task
from serving.request.results import envelope, results
from serving.request.service import RunningService
from serving.request.task_lists import several
from sparsehub.errors import SparsehubError
from sparsehub.task_ref import is_pattern

router = APIRouter(route_class=BodyRoute)


@router.post("/v1/embeddings", response_model=EmbeddingsResponse, response_model_exclude_unset=True)
async def embeddings(body: EmbeddingsRequest, request: Request, service: RunningService) -> EmbeddingsResponse:
    """One vector per text, from one task or from each of several."""
    if body.dimensions is not None and body.dimensions != (size := service.embedding_size):
        problem, expected = "dimensions is not supported", f"{size}, the backbone's own, or null"
        raise UnsupportedFieldError("dimensions", problem, found=body.dimensions, expected=expected)
    texts, truncate = _inputs(body), truncation(body.truncate_prompt_tokens)
    if isinstance(body.model, list) or is_pattern(body.model):
        asked = [(model, Texts(texts)) for model in several(service, body.model)]
        return _many(body, await ask_several(service, request, body.model, asked, len(texts), truncate))
    ticket = await service.embed(None if service.is_backbone(body.model) else body.model, texts, truncate)
    vectors = await results(request, ticket.futures)
    common = envelope("embd", body.model, ticket.task, ticket.tokens)
    return EmbeddingsResponse(**common, object="list", data=_items(body, vectors))


def _many(body: EmbeddingsRequest, found: ManyOutcomes) -> EmbeddingsResponse:
    parts: list[Any] = [
        failed_task(index, its) if its.pending is None else answers_of(index, its, _items(body, its.answers), {})
        for index, its in enumerate(found.tasks)
    ]
    return EmbeddingsResponse(**found.envelope("embd"), data=parts)


def _items(body: EmbeddingsRequest, vectors: Sequence[list[float] | SparsehubError]) -> list[Any]:
    encode: Callable[[list[float]], list[float] | str] = _base64 if body.encoding_format == "base64" else list
    return [
        failed_item(i, v)
        if isinstance(v, SparsehubError)
        else EmbeddingItem(object="embedding", index=i, embedding=encode(v))
        for i, v in enumerate(vectors)
    ]


def _inputs(body: EmbeddingsRequest) -> Sequence[str | list[int]]:
    if isinstance(body.input, str):
        return [body.input]
    if body.input and isinstance(body.input[0], int):
        return [body.input]  # type: ignore[list-item]
    return body.input  # type: ignore[return-value]


def _base64(vector: list[float]) -> str:
    """Little-endian float32, as OpenAI's clients decode it."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
