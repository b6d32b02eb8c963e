"""One replica of an endpoint on Ray Serve: the engine and the app of any endpoint, without a socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from fnmatch import fnmatchcase
from typing import Any

from starlette.types import Message

from serving.app import behind_middleware, create_app
from serving.ray.routing import MOST_PLACED
from serving.request.body import replay
from serving.runtime import freeze_heap, start_service
from serving.settings import VARIABLES, Settings
from sparsehub.errors import UnhealthyError
from sparsehub.extras import require
from sparsehub.settings import errors_named
from sparsehub.task_ref import is_pattern, parse_model

serve = require("ray.serve", "ray")
Answer = tuple[int, list[tuple[bytes, bytes]], bytes]


class Replica:
    """The deployment that the ingress calls. tasks: that it has ready at once; 0 is no bound."""

    def __init__(self, settings: Settings, tasks: int):
        with errors_named(VARIABLES):
            self._running = start_service(settings)
        app = create_app()
        app.state.service = self._running.service
        self._app, self._ready = behind_middleware(app), _ready(tasks)
        self._id = serve.get_replica_context().replica_id.unique_id
        self._answering: set[asyncio.Task[None]] = set()
        freeze_heap()

    async def serves(self, tasks: list[str]) -> list[str]:
        """Those that the catalogue has, as far as this replica knows; of a pattern, which stands alone, those that it
        fits."""
        router = self._running.service.router
        if len(tasks) == 1 and is_pattern(tasks[0]):
            return sorted(name for name in router.names or () if fnmatchcase(name, tasks[0]))[:MOST_PLACED]
        return [task for task in tasks if router.knows(parse_model(task))]

    async def answer(self, scope: dict[str, Any], body: bytes, tasks: list[str]) -> AsyncIterator[list[Message]]:
        """The ASGI messages that answer a request, together what comes together: all of an answer that does not stream.

        tasks: by which the request was sent here; empty where by none.
        """
        for task in tasks:
            await self._ready(task)
        sent: asyncio.Queue[Message | None] = asyncio.Queue()
        left = asyncio.Event()
        answering = asyncio.create_task(self._app(scope, replay(body, _until(left)), self._sender(sent)))
        self._answering.add(answering)
        answering.add_done_callback(lambda _: self._done(answering, sent))
        try:
            while messages := await _together(sent):
                yield messages
        finally:  # also where the client has left, and Ray ends this
            left.set()

    async def whole(self, scope: dict[str, Any]) -> tuple[str, Answer]:
        """This replica's name, and its answer to a request without a body."""
        messages = [message async for part in self.answer(scope, b"", []) for message in part]
        start, *rest = messages
        return self._id, (start["status"], start["headers"], b"".join(message.get("body", b"") for message in rest))

    def check_health(self) -> None:
        """Ray asks this every ten seconds, and starts another replica in place of one that fails."""
        if not self._running.service.engine.healthy:
            raise UnhealthyError("the engine takes no work")

    def __del__(self) -> None:  # Ray calls it when no request is left
        if running := self.__dict__.pop("_running", None):
            running.stop()

    def _sender(self, sent: asyncio.Queue[Message | None]) -> Callable[[Message], Awaitable[None]]:
        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                # Ray's proxy adds the request's id
                headers = [header for header in message["headers"] if header[0] != b"x-request-id"]
                message["headers"] = [*headers, (b"x-sparsehub-replica", self._id.encode())]
            sent.put_nowait(message)

        return send

    def _done(self, answering: asyncio.Task[None], sent: asyncio.Queue[Message | None]) -> None:
        self._answering.discard(answering)
        if not answering.cancelled():
            answering.exception()  # it is logged and answered by now
        sent.put_nowait(None)


def _ready(most: int) -> Callable[[str], Awaitable[str]]:
    """What tells Ray which tasks are here. The engine itself loads them, and drops those that were not used for
    longest: in the same order as Ray, which is to count as many as the engine has room for."""

    @serve.multiplexed(max_num_models_per_replica=most or -1)
    async def ready(task: str) -> str:
        return task

    return ready


def _until(left: asyncio.Event) -> Callable[[], Awaitable[Message]]:
    async def receive() -> Message:
        await left.wait()
        return {"type": "http.disconnect"}

    return receive


async def _together(sent: asyncio.Queue[Message | None]) -> list[Message]:
    """All messages that are there, at least one, and never a head without a body; none at the end."""
    messages: list[Message] = []
    while not messages or not sent.empty() or messages[-1]["type"] == "http.response.start":
        if (message := await sent.get()) is None:
            sent.put_nowait(None)
            break
        messages.append(message)
    return messages
