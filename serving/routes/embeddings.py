"""POST /v1/embeddings: unit vectors; OpenAI's shape. `model` is a task, or the backbone's id for the plain backbone."""

from __future__ import annotations

import base64
import struct
from typing import Any

from fastapi import APIRouter, Request

from serving.protocol.tasks import EmbeddingsBody, as_list, envelope
from serving.request.results import failed_item, results
from sparsehub.errors import SparsehubError

router = APIRouter()


@router.post("/v1/embeddings")
async def embeddings(body: EmbeddingsBody, request: Request) -> dict[str, Any]:
    """One vector per text."""
    service = request.app.state.service
    reference = None if service.is_backbone(body.model) else body.model
    ticket = await service.submit(service.engine.embed, reference, as_list(body.input), body.truncate)
    vectors = await results(request, ticket.futures)
    encode = _base64 if body.encoding_format == "base64" else list
    data = [
        failed_item(i, v)
        if isinstance(v, SparsehubError)
        else {"object": "embedding", "index": i, "embedding": encode(v)}
        for i, v in enumerate(vectors)
    ]
    return envelope("embd", body, ticket, data)


def _base64(vector: list[float]) -> str:
    """Little-endian float32, as OpenAI's clients decode it."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
