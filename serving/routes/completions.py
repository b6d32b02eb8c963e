"""POST /v1/completions: text that goes on from a prompt; OpenAI's shape. `model` is a task, or the plain backbone."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse

from serving.openapi import event_stream
from serving.protocol.base import ApiModel
from serving.protocol.formatters import CompletionFormatter
from serving.protocol.openai import CompletionChunk, CompletionRequest, CompletionResponse
from serving.request.body import BodyRoute
from serving.request.completions import answer
from serving.request.service import RunningService

router = APIRouter(route_class=BodyRoute)


@router.post(
    "/v1/completions",
    response_model=CompletionResponse,
    response_model_exclude_unset=True,
    responses={200: event_stream(CompletionChunk)},
)
async def completions(
    body: CompletionRequest, request: Request, service: RunningService
) -> ApiModel | StreamingResponse:
    """n texts of each prompt."""
    samplings = body.samplings(body.max_tokens, body.logprobs)
    return await answer(service, body, request, CompletionFormatter(), body.prompts, samplings)
