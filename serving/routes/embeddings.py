"""POST /v1/embeddings: unit vectors; OpenAI's shape. `model` is a task, or the backbone's id for the plain backbone."""

from __future__ import annotations

import base64
import struct
from collections.abc import Callable

from fastapi import APIRouter, Request

from serving.protocol.errors import failed_item
from serving.protocol.request_model import UnsupportedFieldError
from serving.protocol.tasks import EmbeddingItem, EmbeddingsRequest, EmbeddingsResponse, envelope
from serving.request.results import results
from serving.request.service import RunningService
from sparsehub.errors import SparsehubError

router = APIRouter()


@router.post("/v1/embeddings", response_model=EmbeddingsResponse, response_model_exclude_unset=True)
async def embeddings(body: EmbeddingsRequest, request: Request, service: RunningService) -> EmbeddingsResponse:
    """One vector per text."""
    reference = None if service.is_backbone(body.model) else body.model
    size = service.embedding_size
    if body.dimensions not in (None, size):
        problem, expected = "dimensions is not supported", f"{size}, the backbone's own, or null"
        raise UnsupportedFieldError("dimensions", problem, found=body.dimensions, expected=expected)
    ticket = await service.embed(reference, body.inputs, body.truncate)
    vectors = await results(request, ticket.futures)
    encode: Callable[[list[float]], list[float] | str] = _base64 if body.encoding_format == "base64" else list
    data = [
        failed_item(i, v)
        if isinstance(v, SparsehubError)
        else EmbeddingItem(object="embedding", index=i, embedding=encode(v))
        for i, v in enumerate(vectors)
    ]
    common = envelope("embd", body.model, ticket.task, ticket.tokens)
    return EmbeddingsResponse(**common, object="list", data=data)


def _base64(vector: list[float]) -> str:
    """Little-endian float32, as OpenAI's clients decode it."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
