"""From a request for text to its texts: whole, or as they come; and letting go of them when the client leaves."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, Any

from fastapi import Request
from fastapi.responses import StreamingResponse

from serving.protocol.base import ApiModel
from serving.protocol.errors import error_body, status_of
from serving.protocol.formatters import Formatter
from serving.protocol.openai import MOST_TEXTS, GenerationRequest, usage
from serving.request.results import results
from sparsehub.engine import Completion, Generation, PendingRequest, Sampling, TextDelta
from sparsehub.engine.generation.entrypoint import Prompt
from sparsehub.errors import RequestError, SparsehubError

if TYPE_CHECKING:
    from serving.app import Service

Heard = tuple[int, TextDelta | None]


async def answer(
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
    service: Service = request.app.state.service
    asked = [prompt for prompt in prompts for _ in samplings]
    heard: asyncio.Queue[Heard] = asyncio.Queue()
    listen = _listener(heard) if body.stream else _nobody
    generations = await _submit(service, body.model, asked, list(samplings) * len(prompts), listen)
    if body.stream:
        return await _stream(body, formatter, generations, heard)
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
    return formatter.response(_head(body, formatter, generations), texts, usage(generations, body.n))


async def _submit(
    service: Service,
    model: str,
    prompts: Sequence[Prompt],
    samplings: Sequence[Sampling],
    listen: Callable[[int], Callable[[TextDelta | None], None]],
) -> list[Generation]:
    """The way of every request: whose task it is, what the caller may ask for, and then the engine's queue."""
    generations: list[Generation] = []

    def generate(
        reference: str | None, inputs: Sequence[Prompt], *, truncate: bool, timeout: float, admit: Callable[[int], None]
    ) -> PendingRequest[Completion]:
        del truncate  # a prompt is never cut
        generations.extend(service.engine.generate_many(reference, inputs, samplings, timeout, listen, admit))
        futures = [generation.future for generation in generations]
        return PendingRequest(futures, generations[0].task, sum(len(generation.prompt) for generation in generations))

    await service.submit(generate, None if service.is_backbone(model) else model, prompts, False)
    return generations


def _nobody(_: int) -> Callable[[TextDelta | None], None]:
    return lambda _: None


def _listener(heard: asyncio.Queue[Heard]) -> Callable[[int], Callable[[TextDelta | None], None]]:
    """Pieces come in the generator's thread, and go to the event loop's queue."""
    loop = asyncio.get_running_loop()

    def of(index: int) -> Callable[[TextDelta | None], None]:
        def hear(piece: TextDelta | None) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended with its server
                loop.call_soon_threadsafe(heard.put_nowait, (index, piece))

        return hear

    return of


async def _stream(
    body: GenerationRequest, formatter: Formatter, generations: Sequence[Generation], heard: asyncio.Queue[Heard]
) -> StreamingResponse:
    """Server-sent events. Nothing is sent before the first piece, so that what fails before it has an honest status."""
    try:
        first = await heard.get()
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
    heard: asyncio.Queue[Heard],
    first: Heard,
) -> AsyncIterator[str]:
    head = _head(body, formatter, generations)
    try:
        for index in range(len(generations)):
            if (opening := formatter.opening(head, index)) is not None:
                yield _event(opening.model_dump(exclude_unset=True))
        async for index, piece, offset in _pieces(len(generations), heard, first):
            if piece is not None:
                yield _event(formatter.chunk(head, index, piece, offset).model_dump(exclude_unset=True))
            elif (error := generations[index].future.exception()) is not None:
                yield _event(error_body(str(error), status_of(error), code=type(error).__name__))
                return
        if body.stream_options.include_usage:
            yield _event(formatter.closing(head, usage(generations, body.n)).model_dump(exclude_unset=True))
        yield "data: [DONE]\n\n"
    finally:  # also where the client has left
        _cancel(generations)


async def _pieces(
    texts: int, heard: asyncio.Queue[Heard], first: Heard
) -> AsyncIterator[tuple[int, TextDelta | None, int]]:
    """Every piece with the characters that came before it, and None where a text ends, until all have ended."""
    offsets, left = [0] * texts, texts
    index, piece = first
    while True:
        yield index, piece, offsets[index]
        if piece is None:
            left -= 1
        else:
            offsets[index] += len(piece.text)
        if not left:
            return
        index, piece = await heard.get()


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data)}\n\n"


def _head(body: GenerationRequest, formatter: Formatter, generations: Sequence[Generation]) -> dict[str, Any]:
    """What stands before every answer. task and digest say exactly which package gave it."""
    task = generations[0].task
    served = {"task": task.reference, "digest": task.digest} if task else {}
    name = f"{formatter.prefix}-{uuid.uuid4().hex}"
    return {"id": name, "created": int(time.time()), "model": body.model, **served}


def _cancel(generations: Sequence[Generation]) -> None:
    for generation in generations:
        generation.cancel()
