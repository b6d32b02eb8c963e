"""A request's body: read whole before anything is done with it, within the bounds of size and time."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from starlette.types import Message, Receive

from serving.protocol.errors import BodyTooLargeError, BodyTooSlowError
from serving.request.results import ClientLeft
from serving.settings import Settings


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
