"""POST /v1/chat/completions: the next message of a conversation, by the backbone's chat template; OpenAI's shape."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse

from serving.openapi import event_stream
from serving.protocol.base import ApiModel
from serving.protocol.formatters import ChatFormatter
from serving.protocol.openai import ChatCompletionChunk, ChatCompletionRequest, ChatCompletionResponse
from serving.request.body import BodyRoute
from serving.request.completions import answer
from serving.request.service import RunningService

router = APIRouter(route_class=BodyRoute)


@router.post(
    "/v1/chat/completions",
    response_model=ChatCompletionResponse,
    response_model_exclude_unset=True,
    responses={200: event_stream(ChatCompletionChunk)},
)
async def chat(body: ChatCompletionRequest, request: Request, service: RunningService) -> ApiModel | StreamingResponse:
    """n answers to one conversation."""
    samplings = body.samplings(body.most_tokens, body.alternatives)
    return await answer(service, body, request, ChatFormatter(), [body.turns], samplings)
