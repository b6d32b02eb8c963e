"""A request's body: read whole before anything is done with it, within the bounds of size, time and structure."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.types import Message, Receive

from serving.protocol.errors import BodyTooLargeError, BodyTooSlowError
from serving.request.results import ClientLeft
from serving.settings import Settings
from sparsehub.errors import RequestError

LARGE = 1 << 20  # bytes; what a larger body took is given back to the system
SMALL = 1 << 15  # bytes; what a larger body holds is looked at in a thread
OBJECTS = 4  # and as many lists, for each input of a request: documents, messages and the parts of their content
FIELDS = 16  # of an object, in the mean
_TINY = 1 << 12  # bytes, of which no structure takes long
_PARSER = ThreadPoolExecutor(1, "sparsehub-parse")
# Never backtracks, and one that does not end goes to the end: a regular expression is not to be an attack itself.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?+', re.DOTALL)


async def read_body(settings: Settings, headers: Mapping[bytes, bytes], receive: Receive) -> bytes:
    """The whole body, so that a slow client holds nothing but its connection.

    Raises `BodyTooLargeError` before anything too large is kept, `BodyTooSlowError`, and `ClientLeft`.
    """
    limit = settings.body_kib << 10
    announced = headers.get(b"content-length", b"")
    if announced.isdigit() and int(announced) > limit:
        raise _too_large(limit)
    body = bytearray()
    try:
        async with asyncio.timeout(settings.timeout):
            more = True
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientLeft("the client left")
                body += message.get("body", b"")
                more = message.get("more_body", False)
                if len(body) > limit:
                    raise _too_large(limit)
    except TimeoutError as error:
        found = f"{len(body)} bytes in {settings.timeout:g} s"
        raise BodyTooSlowError("the request's body did not come in time", found=found) from error
    return bytes(body)


async def parse(body: bytes) -> Any:
    """What a body of JSON holds, read off the event loop where it is large; raises `json.JSONDecodeError`."""
    if len(body) <= SMALL:
        return json.loads(body)
    return await asyncio.get_running_loop().run_in_executor(_PARSER, json.loads, body)


async def check_parts(settings: Settings, body: bytes) -> None:
    """`check_structure`, off the event loop for a large body."""
    if len(body) <= SMALL:
        check_structure(settings, body)
    else:
        await asyncio.get_running_loop().run_in_executor(_PARSER, check_structure, settings, body)


def check_structure(settings: Settings, body: bytes) -> None:
    """Raise `RequestError` for JSON of so many parts that to parse and validate it would hold up everybody.

    Every value in a list takes a token at least, and so does a comma in a text: there cannot be more of them than
    tokens. Objects and lists are made and validated one by one, so of them there are fewer.
    """
    if len(body) <= _TINY:
        return
    if (values := body.count(b",")) > settings.max_tokens:
        raise _too_many("values", values, settings.max_tokens)
    most = OBJECTS * settings.max_items
    bounds = {"objects": (b"{", b"}", most), "lists": (b"[", b"]", most), "fields": (b":", b":", FIELDS * most)}
    if all(body.count(begin) <= bound for begin, _, bound in bounds.values()):
        return  # as nearly all are; texts hold these signs too
    structure = _without_strings(body)
    for what, (begin, end, bound) in bounds.items():
        if (found := min(structure.count(begin), structure.count(end))) > bound:
            raise _too_many(what, found, bound)


def replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives a body that was read already, and then what comes after it."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def _too_large(limit: int) -> BodyTooLargeError:
    return BodyTooLargeError(
        "the request's body is too large", expected=f"at most {limit} bytes", fix="send fewer inputs"
    )


def _too_many(what: str, found: int, most: int) -> RequestError:
    problem = f"too many {what} in the request's body"
    return RequestError(problem, found=found, expected=f"at most {most}", fix="send fewer inputs")


def _without_strings(body: bytes) -> bytes:
    """What is outside of the strings of a body of JSON."""
    parts, end = [], 0
    for string in _STRING.finditer(body):
        parts.append(body[end : string.start()])
        end = string.end()
    return b"".join([*parts, body[end:]])


class _ParsedRequest(Request):
    """A request whose JSON, where it is long, is parsed off the event loop; FastAPI reads it."""

    async def json(self) -> Any:
        """The body; raises `json.JSONDecodeError`, as Starlette's own does."""
        if not hasattr(self, "_json"):
            self._json = await parse(await self.body())
        return self._json


class BodyRoute(APIRoute):
    """A route that takes inputs; `APIRouter(route_class=BodyRoute)` makes its routes such."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """What FastAPI calls with each request."""
        answer = super().get_route_handler()

        async def parsed(request: Request) -> Response:
            return await answer(_ParsedRequest(request.scope, request.receive))

        return parsed
