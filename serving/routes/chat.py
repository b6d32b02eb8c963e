"""POST /v1/chat/completions: the next message of a conversation, by the backbone's chat template; OpenAI's shape."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from serving.protocol.openai import ChatBody, ChatShape
from serving.request.completions import answer

router = APIRouter()


@router.post("/v1/chat/completions")
async def chat(body: ChatBody, request: Request) -> Any:
    """n answers to one conversation."""
    samplings = body.samplings(body.most_tokens, body.told)
    return await answer(body, request, ChatShape(), [body.turns], samplings)
