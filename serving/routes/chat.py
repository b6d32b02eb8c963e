"""POST /v1/chat/completions: the next message of a conversation, by the backbone's chat template; OpenAI's shape."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from serving.generating import answer
from serving.prose import ChatBody, ChatShape

router = APIRouter()


@router.post("/v1/chat/completions")
async def chat(body: ChatBody, request: Request) -> Any:
    """n answers to one conversation."""
    samplings = body.samplings(body.most_tokens, body.told)
    return await answer(body, request, ChatShape(), [body.turns], samplings)
