"""POST /v1/rerank, /rerank, /v2/rerank: documents by how well they fit a query; the shape of vLLM, Jina and Cohere."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from serving.protocol.tasks import RerankBody, envelope
from serving.request.results import failed_item
from serving.request.scoring import scored
from sparsehub.errors import SparsehubError

router = APIRouter()


@router.post("/v1/rerank")
@router.post("/rerank")
@router.post("/v2/rerank")
async def rerank(body: RerankBody, request: Request) -> dict[str, Any]:
    """The best documents first, by a regression over two texts, or on the plain backbone by their cosine."""
    texts = [document if isinstance(document, str) else document.text for document in body.documents]
    ticket, scores = await scored(request, body.model, [[body.query, text] for text in texts], body.truncate)
    failed = [failed_item(index, value) for index, value in enumerate(scores) if isinstance(value, SparsehubError)]
    ranked = sorted(
        ((value, index) for index, value in enumerate(scores) if not isinstance(value, SparsehubError)),
        key=lambda pair: (-pair[0], pair[1]),
    )
    best = ranked[: body.top_n or len(ranked)]
    entries = [
        {
            "index": index,
            "relevance_score": value,
            **({"document": {"text": texts[index]}} if body.return_documents else {}),
        }
        for value, index in best
    ]
    answer = envelope("rerank", body, ticket, [])
    del answer["data"], answer["object"]
    return {**answer, "results": [*entries, *failed]}
