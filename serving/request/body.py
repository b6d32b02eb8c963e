"""A request's body: read whole before anything is done with it, within the bounds of size, time and structure."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from starlette.types import Message, Receive

from serving.protocol.errors import BodyTooLargeError, BodyTooSlowError
from serving.request.results import ClientLeft
from serving.settings import Settings
from sparsehub.errors import RequestError

LARGE = 1 << 20  # bytes; what a larger body took is given back to the system
OBJECTS = 4  # of JSON, for each input that a request may have: documents, messages and the parts of their content
_SMALL = 1 << 12  # bytes, of which no structure takes long


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


def check_structure(settings: Settings, body: bytes) -> None:
    """Raise `RequestError` for JSON of so many values that to parse and validate it would hold up everybody.

    Every value in a list takes a token at least, and so does a comma in a text: there cannot be more of them than
    tokens. Objects are validated one by one, so of them there are fewer.
    """
    if len(body) <= _SMALL:
        return
    if (values := body.count(b",")) > settings.max_tokens:
        raise _too_many("values", values, settings.max_tokens)
    most = OBJECTS * settings.max_items
    if body.count(b"{") > most and (objects := _objects(body)) > most:
        raise _too_many("objects", objects, most)


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


def _objects(body: bytes) -> int:
    """How many objects a body of JSON holds; none where it is no JSON, which is refused later."""
    try:
        waiting, objects = [json.loads(body)], 0
    except (ValueError, RecursionError):
        return 0
    while waiting:
        value: Any = waiting.pop()
        if isinstance(value, dict):
            objects += 1
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
    return objects
