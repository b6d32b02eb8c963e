"""POST /v1/completions: text that goes on from a prompt; OpenAI's shape. `model` is a task, or the plain backbone."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from serving.protocol.openai import CompletionBody, CompletionShape
from serving.request.completions import answer

router = APIRouter()


@router.post("/v1/completions")
async def completions(body: CompletionBody, request: Request) -> Any:
    """n texts of each prompt."""
    samplings = body.samplings(body.max_tokens, body.logprobs)
    return await answer(body, request, CompletionShape(), body.prompts, samplings)
