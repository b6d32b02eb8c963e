"""The results of submitted rows: awaited without a thread, and cancelled when the client disconnects."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

from fastapi import Request

from serving.protocol.base import UsageInfo
from sparsehub.engine import TaskInfo
from sparsehub.errors import CancelledError, RequestError, SparsehubError

T = TypeVar("T")
CLIENT_LEFT = 499  # nginx's status for it; only the log and the metrics see it


class ClientLeft(CancelledError):  # noqa: N818 - it is an event more than an error
    """The client disconnected before the response was ready."""


class AnswerTimeoutError(CancelledError):
    """The answer took longer than `answer_timeout`; it would again, so clients are told not to retry."""

    def __init__(self, seconds: float):
        fix = "ask for less, stream a text, or raise the endpoint's --answer-timeout"
        super().__init__("the answer was not ready in time", found=f"{seconds:g} s", fix=fix)


def answer_timeout(request: Request) -> float:
    """Seconds that an answer may take, by the endpoint's settings."""
    seconds: float = request.app.state.service.settings.answer_timeout
    return seconds


async def results(request: Request, futures: list[Future[T]]) -> list[T | SparsehubError]:
    """Every row's result or its own error, in order. Rows that wait are cancelled when the client disconnects.

    Where all rows failed, raises the first row's error, so that the status says so; `AnswerTimeoutError` where they
    take too long.
    """
    limit = answer_timeout(request)
    waiting = asyncio.gather(*(asyncio.wrap_future(future) for future in futures), return_exceptions=True)
    waiting.add_done_callback(_retrieve_exception)
    leaving = asyncio.create_task(_disconnect(request))
    either: list[asyncio.Future[Any]] = [waiting, leaving]
    try:
        done, _ = await asyncio.wait(either, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
        if not done:
            raise AnswerTimeoutError(limit)
        if not waiting.done():
            raise ClientLeft("the client left")
    finally:  # also where this request itself is cancelled, by a server's time limit for instance
        leaving.cancel()
        waiting.cancel()
        for future in futures:
            future.cancel()
    outcome: list[T | SparsehubError] = []
    for result in waiting.result():
        if isinstance(result, BaseException) and not isinstance(result, SparsehubError):
            raise result
        outcome.append(result)
    if isinstance(outcome[0], SparsehubError) and all(isinstance(result, SparsehubError) for result in outcome):
        raise outcome[0]
    return outcome


def first_failure(answers: Sequence[Any]) -> RequestError | None:
    """Why answers that may have no gap are none; None where they have none."""
    for index, answer in enumerate(answers):
        if isinstance(answer, SparsehubError):
            return RequestError(f"row {index} failed", found=str(answer))
    return None


def _retrieve_exception(waiting: asyncio.Future[Any]) -> None:
    """Read the exception of a cancelled request, or asyncio would log that it was never retrieved."""
    if not waiting.cancelled():
        waiting.exception()


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def envelope(kind: str, model: str, task: TaskInfo | None, tokens: int) -> dict[str, Any]:
    """The fields that every response of a task has. kind: what its id begins with; task: None for the backbone."""
    served = {"task": task.reference, "version": task.version, "digest": task.digest} if task else {}
    created = int(time.time())
    return {
        "id": f"{kind}-{uuid.uuid4().hex}",
        "created": created,
        "model": model,
        **served,
        "usage": usage_of(tokens),
    }


def usage_of(tokens: int) -> UsageInfo:
    """Of tokens that were read; none was generated."""
    return UsageInfo(prompt_tokens=tokens, completion_tokens=0, total_tokens=tokens)
