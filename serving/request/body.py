"""A request's body: read whole before anything is done with it, within the bounds of size, time and structure; and a
response's, written off the event loop where it is long: a million numbers take a tenth of a second, and nobody else's
request would be looked at meanwhile."""

from __future__ import annotations

import asyncio
import functools
import json
import re
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from anyio.to_thread import run_sync
from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel
from pydantic_core import to_json
from starlette.types import Message, Receive

from serving.protocol.errors import BodyTooLargeError, BodyTooSlowError
from serving.request.results import ClientLeft
from serving.settings import Settings
from sparsehub.errors import RequestError

LARGE = 1 << 20  # bytes; what a larger body took is given back to the system
SMALL = 1 << 15  # bytes; what a larger body holds is looked at in a thread
OBJECTS = 4  # and as many lists, for each input of a request: documents, messages and the parts of their content
FIELDS = 16  # of an object, in the mean
LONG = 10_000  # numbers and texts of a response, which take about a millisecond to write
NUMBER = 5  # characters of one in base64
PIECE = 4096  # of these written at once: a thread that writes lets no other run until it is done
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
    """A route that takes inputs and gives long answers; `APIRouter(route_class=BodyRoute)` makes its routes such."""

    def __init__(self, path: str, endpoint: Any, **options: Any):
        super().__init__(path, answering_off_the_loop(endpoint), **options)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """What FastAPI calls with each request."""
        answer = super().get_route_handler()

        async def parsed(request: Request) -> Response:
            return await answer(_ParsedRequest(request.scope, request.receive))

        return parsed


def answering_off_the_loop(endpoint: Any) -> Any:
    """An endpoint whose long responses are written off the event loop; `BodyRoute` makes all of its own such."""

    @functools.wraps(endpoint)
    async def answer(*args: Any, **kwargs: Any) -> Any:
        response = await endpoint(*args, **kwargs)
        if not isinstance(response, BaseModel) or not is_long(response):
            return response  # FastAPI writes it
        return Response(await run_sync(written, response), media_type="application/json")

    return answer


def is_long(response: BaseModel) -> bool:
    """Whether a response holds so much that it would hold up the event loop."""
    found = 0
    for size in _sizes(response):
        found += size
        if found > LONG:
            return True
    return False


def written(response: BaseModel) -> bytes:
    """The JSON that FastAPI writes of a response of which unset fields are left out; its longest list comes last."""
    return b"".join(_pieces(response))


def _pieces(model: BaseModel) -> Iterator[bytes]:
    name, values = max(_lists(model), key=lambda found: len(found[1]), default=("", ()))
    if not values:
        yield _json(model)
        return
    rest = _json(model, name)
    yield b"%b%b%b:[" % (rest[:-1], b"," if len(rest) > 2 else b"", to_json(name))
    for start in range(0, len(values), PIECE):
        yield b"," if start else b""
        yield from _joined(values[start : start + PIECE])
    yield b"]}"


def _joined(values: Sequence[Any]) -> Iterator[bytes]:
    """A piece of a list: models one by one, anything else at once."""
    if not isinstance(values[0], BaseModel):
        yield to_json(values, inf_nan_mode="null")[1:-1]
        return
    for place, value in enumerate(values):
        yield b"," if place else b""
        yield from _pieces(value) if is_long(value) else (_json(value),)


def _json(model: BaseModel, without: str = "") -> bytes:
    return model.model_dump_json(exclude={without} if without else None, exclude_unset=True, by_alias=True).encode()


def _lists(model: BaseModel) -> list[tuple[str, Sequence[Any]]]:
    return [(name, value) for name, value in vars(model).items() if isinstance(value, list)]


def _sizes(model: BaseModel) -> Iterator[int]:
    """How long each list of a response is, and of what is in it; a text counts as the numbers that it may stand for."""
    yield sum(len(value) for value in vars(model).values() if isinstance(value, str)) // NUMBER
    for _, values in _lists(model):
        yield len(values)
        if values and isinstance(values[0], BaseModel):
            yield from (size for value in values for size in _sizes(value))
