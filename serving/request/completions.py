"""Answers of text generation, whole or as server-sent events; texts are cancelled when the client disconnects."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import Request
from fastapi.responses import StreamingResponse

from serving.protocol.base import ApiModel, UsageInfo
from serving.protocol.errors import error_body, status_of
from serving.protocol.formatters import Formatter
from serving.protocol.openai import MOST_TEXTS, GenerationRequest
from serving.request.results import AnswerTimeoutError, answer_timeout, results
from serving.request.service import Service
from sparsehub.engine import Completion, Generation, Sampling, TextDelta
from sparsehub.engine.generation.entrypoint import Prompt
from sparsehub.errors import RequestError, SparsehubError

_Piece = tuple[int, TextDelta | None]


class _Heard:
    """Parts of texts on their way from the generator's thread to the event loop that makes this."""

    def __init__(self) -> None:
        self._loop, self._pieces = asyncio.get_running_loop(), asyncio.Queue[_Piece]()

    def hear(self, number: int, piece: TextDelta | None) -> None:
        """For the generator: the next part of the text of this number, None after the last."""
        with contextlib.suppress(RuntimeError):  # the loop has ended with its server
            self._loop.call_soon_threadsafe(self._pieces.put_nowait, (number, piece))

    async def next(self) -> _Piece:
        return await self._pieces.get()


async def answer(
    service: Service,
    body: GenerationRequest,
    request: Request,
    formatter: Formatter,
    prompts: Sequence[Prompt],
    samplings: Sequence[Sampling],
) -> ApiModel | StreamingResponse:
    """n texts of each prompt. samplings: of the n texts of one prompt."""
    count = len(prompts) * body.n
    if not 1 <= count <= MOST_TEXTS:
        problem = "too many texts in one request" if count else "the prompt is empty"
        raise RequestError(problem, found=count, expected=f"1 to {MOST_TEXTS} texts")
    asked, heard = [prompt for prompt in prompts for _ in samplings], _Heard() if body.stream else None
    model = None if service.is_backbone(body.model) else body.model
    generations = await service.generate(model, asked, list(samplings) * len(prompts), heard)
    if heard is not None:
        return await _stream(body, request, formatter, generations, heard)
    try:
        found = await results(request, [generation.future for generation in generations])
    except BaseException:  # the client left, or the server gave the request up
        _cancel(generations)
        raise
    texts: list[Completion] = []
    for done in found:
        if isinstance(done, SparsehubError):
            raise done
        texts.append(done)
    return formatter.response(_head(body, formatter, generations), texts, _usage(generations, body.n))


async def _stream(
    body: GenerationRequest,
    request: Request,
    formatter: Formatter,
    generations: Sequence[Generation],
    heard: _Heard,
) -> StreamingResponse:
    """Server-sent events. Nothing is sent before the first piece, so that what fails before it has an honest status."""
    limit = answer_timeout(request)
    try:
        first = await asyncio.wait_for(heard.next(), limit)
    except TimeoutError as late:
        _cancel(generations)
        raise AnswerTimeoutError(limit) from late
    except BaseException:
        _cancel(generations)
        raise
    if first[1] is None and (error := generations[first[0]].future.exception()) is not None:
        _cancel(generations)
        raise error
    events = _events(body, formatter, generations, heard, first)
    return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})


async def _events(
    body: GenerationRequest,
    formatter: Formatter,
    generations: Sequence[Generation],
    heard: _Heard,
    first: _Piece,
) -> AsyncIterator[str]:
    head = _head(body, formatter, generations)
    try:
        for index in range(len(generations)):
            if (opening := formatter.opening(head, index)) is not None:
                yield _event(opening.model_dump(exclude_unset=True))
        async for index, piece in _pieces(len(generations), heard, first):
            if piece is not None:
                yield _event(formatter.chunk(head, index, piece).model_dump(exclude_unset=True))
            elif (error := generations[index].future.exception()) is not None:
                yield _event(error_body(str(error), status_of(error), code=type(error).__name__))
                return
        if body.stream_options.include_usage:
            yield _event(formatter.closing(head, _usage(generations, body.n)).model_dump(exclude_unset=True))
        yield "data: [DONE]\n\n"
    finally:  # also where the client has left
        _cancel(generations)


async def _pieces(texts: int, heard: _Heard, first: _Piece) -> AsyncIterator[_Piece]:
    """Every piece, and None where a text ends, until all have ended."""
    index, piece = first
    while True:
        yield index, piece
        texts -= piece is None
        if not texts:
            return
        index, piece = await heard.next()


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data)}\n\n"


def _head(body: GenerationRequest, formatter: Formatter, generations: Sequence[Generation]) -> dict[str, Any]:
    """What stands before every answer. task and digest say exactly which package gave it."""
    task = generations[0].task
    served = {"task": task.reference, "digest": task.digest} if task else {}
    name = f"{formatter.prefix}-{uuid.uuid4().hex}"
    return {"id": name, "created": int(time.time()), "model": body.model, **served}


def _usage(generations: Sequence[Generation], n: int) -> UsageInfo:
    """Tokens in and out. A prompt counts once, however many texts it got."""
    prompt = sum(len(generation.prompt) for generation in generations[::n])
    said = sum(len(generation.tokens) for generation in generations)
    return UsageInfo(prompt_tokens=prompt, completion_tokens=said, total_tokens=prompt + said)


def _cancel(generations: Sequence[Generation]) -> None:
    for generation in generations:
        generation.cancel()
