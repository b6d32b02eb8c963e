"""POST /v1/rerank, /rerank, /v2/rerank: documents by how well they fit a query; the shape of vLLM, Jina and Cohere."""

from __future__ import annotations

from fastapi import APIRouter, Request

from serving.protocol.errors import failed_item
from serving.protocol.request_model import truncation
from serving.protocol.tasks import RerankDocument, RerankRequest, RerankResponse, RerankResult
from serving.request.body import BodyRoute
from serving.request.results import envelope
from serving.request.scoring import scored
from serving.request.service import RunningService
from sparsehub.errors import SparsehubError

router = APIRouter(route_class=BodyRoute)


@router.post("/v1/rerank", response_model=RerankResponse, response_model_exclude_unset=True)
@router.post("/rerank", response_model=RerankResponse, response_model_exclude_unset=True)
@router.post("/v2/rerank", response_model=RerankResponse, response_model_exclude_unset=True)
async def rerank(body: RerankRequest, request: Request, service: RunningService) -> RerankResponse:
    """The best documents first, by a regression over two texts, or on the plain backbone by their cosine."""
    texts = [document if isinstance(document, str) else document.text for document in body.documents]
    pairs, truncate = [[body.query, text] for text in texts], truncation(body.truncate_prompt_tokens)
    ticket, scores = await scored(service, request, body.model, pairs, truncate)
    failed = [failed_item(index, value) for index, value in enumerate(scores) if isinstance(value, SparsehubError)]
    ranked = sorted(
        ((value, index) for index, value in enumerate(scores) if not isinstance(value, SparsehubError)),
        key=lambda pair: (-pair[0], pair[1]),
    )
    best = [_result(body, texts, index, value) for value, index in ranked[: body.top_n or len(ranked)]]
    return RerankResponse(**envelope("rerank", body.model, ticket.task, ticket.tokens), results=[*best, *failed])


def _result(body: RerankRequest, texts: list[str], index: int, value: float) -> RerankResult:
    if body.return_documents:
        return RerankResult(index=index, relevance_score=value, document=RerankDocument(text=texts[index]))
    return RerankResult(index=index, relevance_score=value)
