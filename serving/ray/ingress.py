"""The ingress of the endpoint on Ray Serve: it sends a request to a replica that has its tasks ready, and again if that
replica is lost. It holds no model and checks no key: each replica's middleware does.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from serving.protocol.errors import error_body
from serving.ray.aggregate import MERGED
from serving.ray.routing import MOST_PLACED, carried, may_repeat, place_of, tasks_in
from serving.request.body import SMALL, check_parts, read_body
from serving.request.error_responses import failure
from serving.settings import Settings
from sparsehub.errors import CancelledError, EngineError, SparsehubError
from sparsehub.extras import require
from sparsehub.task_ref import BACKBONE

log = logging.getLogger("sparsehub")
ray = require("ray", "ray")
TRIES = 3
PAUSE = 0.25  # seconds before a request is sent again: Ray takes a moment to see that a replica is gone
PATIENCE = 10.0  # seconds beyond the timeout of an answer, for the way there and back
GONE = (ray.exceptions.RayActorError, ray.exceptions.ObjectLostError)


class ReplicaLostError(EngineError):
    """The replica that was to answer is gone, and whether it did is not known."""


class Ingress:
    """The deployment that Ray's proxy calls. replicas: Ray's handle of the replicas' deployment."""

    def __init__(self, settings: Settings, replicas: Any):
        self._settings, self._replicas = settings, replicas
        self._known: set[str] = set()

    async def __call__(self, _: Request) -> Response:
        return _Forwarded(self._forward)

    async def _forward(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            body = await read_body(self._settings, dict(scope["headers"]), receive)
            await check_parts(self._settings, body)
            scope = carried(scope)
            if scope["method"] == "GET" and scope["path"] in MERGED:
                await (await self._from_all(scope))(scope, receive, send)
            else:
                await self._from_one(scope, body, send)
        except SparsehubError as error:
            await failure(error)(scope, receive, send)

    async def _from_one(self, scope: Scope, body: bytes, send: Send) -> None:
        """Raises `ReplicaLostError` where the last try was lost before a byte of its answer came."""
        tries, tried = (TRIES if may_repeat(scope) else 1), 0
        while True:
            tried, last = tried + 1, None
            try:
                async with aclosing(self._answer(scope, body)) as answer:
                    async for last in answer:
                        await send(last)
                return
            except GONE as error:
                if last is not None and last["type"] == "http.response.body" and not last.get("more_body"):
                    return  # it was lost after its answer
                log.warning("a replica was lost with a request for %s: %s", scope["path"][:200], type(error).__name__)
                if last is not None:
                    await send(_broken_off())
                    return
                if tried == tries:
                    raise ReplicaLostError("the replica was lost before it answered", fix="ask again") from error
                await asyncio.sleep(PAUSE * tried)

    async def _answer(self, scope: Scope, body: bytes) -> AsyncGenerator[Message]:
        """One try. Raises what Ray raises for a lost replica, and `CancelledError` where none answers in time."""
        try:
            async with asyncio.timeout(self._settings.answer_timeout + PATIENCE) as limit:
                tasks = await self._tasks(scope["path"], body)
                placed = self._replicas.options(stream=True, multiplexed_model_id=place_of(tasks))
                answer = placed.answer.remote(scope, body, tasks)
                try:
                    async for messages in answer:
                        limit.reschedule(None)  # what streams may take its time
                        for message in messages:
                            yield message
                except BaseException:  # the client has left, or it takes too long
                    answer.cancel()
                    raise
        except TimeoutError as error:
            raise CancelledError("no replica answered in time", fix="ask again, or add replicas") from error

    async def _tasks(self, path: str, body: bytes) -> list[str]:
        """What a request is placed by: tasks of the catalogue, or nothing; other names are not remembered."""
        asked = tasks_in(path, body) if len(body) <= SMALL else await asyncio.to_thread(tasks_in, path, body)
        asked = [task for task in asked if task not in (BACKBONE, self._settings.backbone)]
        if new := [task for task in asked if task not in self._known]:
            found = await self._replicas.serves.remote(new)
            self._known.update(found)
            asked = [*(task for task in asked if task in self._known and task not in found), *found]
        return asked[:MOST_PLACED]

    async def _from_all(self, scope: Scope) -> Response:
        """What all replicas say, as one answer; the first refusal where one refuses."""
        asked = self._replicas.broadcast("whole", scope)
        try:
            answers = await asked.results_async(timeout_s=self._settings.timeout, return_exceptions=True)
        except TimeoutError as error:
            raise CancelledError("a replica does not answer", fix="ask again") from error
        found = dict(answer for answer in answers if not isinstance(answer, BaseException))
        if not found:
            raise ReplicaLostError("no replica answers", fix="ask again")
        for status, headers, body in found.values():
            if status != 200:
                return Response(body, status, {name.decode(): value.decode() for name, value in headers})
        merged, kind = MERGED[scope["path"]]({name: body for name, (_, _, body) in found.items()})
        return Response(merged, media_type=kind)


class _Forwarded(Response):
    """A response that another process gives."""

    def __init__(self, forward: Any):
        self._forward = forward

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._forward(scope, receive, send)


def _broken_off() -> Message:
    """The end of a stream whose replica was lost: an event that says so, and no [DONE]."""
    body = json.dumps(error_body("the replica was lost in the middle of its answer", 503, code="ReplicaLostError"))
    return {"type": "http.response.body", "body": f"data: {body}\n\n".encode(), "more_body": False}
