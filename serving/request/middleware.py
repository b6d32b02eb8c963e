"""The middleware in front of every route, BentoML's own included: it authenticates the caller, reads the body, logs and
counts the answer.

Plain ASGI: a middleware of Starlette's kind costs a task and two streams for every request.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import time
import uuid
from collections.abc import Iterable

from opentelemetry.trace import get_current_span
from starlette.datastructures import State
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.auth.authenticator import (
    ANONYMOUS,
    CONSOLE,
    Caller,
    authorization,
    check_host,
    check_role,
    is_console,
    needed_for,
)
from serving.auth.keys import PREDICT
from serving.auth.sign_in import refusal
from serving.request.body import LARGE, check_parts, read_body, replay
from serving.request.context import RequestContext, enter
from serving.request.error_responses import failure
from serving.request.logs import log_request
from serving.request.metrics import Metrics
from serving.request.service import Service
from serving.request.tracing import describe
from sparsehub.errors import SparsehubError
from sparsehub.memory import trim_memory

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_PAGE_HEADERS = ((b"content-security-policy", b"frame-ancestors 'none'"), (b"referrer-policy", b"no-referrer"))
LOOK_SECONDS = 0.05  # between two looks at how late the event loop is
_KNOWN = frozenset({"/healthz", "/livez", "/readyz", "/metrics"})  # that BentoML answers, with no route of ours


class RequestMiddleware:
    """Wraps the whole app. state: of the app, whose `service` exists later than the app itself."""

    def __init__(self, app: ASGIApp, state: State):
        self._app, self._state = app, state
        self._watching: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._answer(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})  # no route of ours speaks it

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        service: Service = self._state.service
        if self._watching is None or self._watching.done():
            self._watching = asyncio.create_task(_watch_loop(service.metrics))
        headers = dict(scope["headers"])
        call = RequestContext(_request_id(headers.get(b"x-request-id")), ANONYMOUS, _host(scope, "client") or "local")
        status, body = 0, b""  # until there is an answer, and a body

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                given = list(message.get("headers", ()))
                message["headers"] = [*given, *_response_headers(call), *(_PAGE_HEADERS if _is_page(given) else ())]
                if (span := get_current_span()).is_recording():
                    describe(span, call)  # now: the span ends with the last byte
            await send(message)

        try:
            call.caller = _authenticate(service, scope, headers)
            enter(call)
            if _takes_body(scope):
                body = await read_body(service.settings, headers, receive)
                await check_parts(service.settings, body)
            await self._app(scope, replay(body, receive), send_with_headers)
        except SparsehubError as error:
            page = refusal(scope, headers, error) if service.settings.console else None
            await (page or failure(error))(scope, receive, send_with_headers)
        except Exception:
            if status == 0:
                raise
            # It was answered and logged, then raised again for the server, which would cut the connection before the
            # answer has left.
        finally:
            seconds = time.monotonic() - call.began
            service.metrics.request(_route(scope), status or 500, call, seconds)
            service.finish(call)
            log_request(call, scope["method"], scope["path"], status or 500, seconds)
            if len(body) > LARGE:
                asyncio.get_running_loop().run_in_executor(None, trim_memory)


def _takes_body(scope: Scope) -> bool:
    """Whether a request's body is read. Of strangers it is only at the console's sign-in."""
    return scope["method"] not in ("GET", "HEAD") and (
        needed_for(scope["path"]) is not None or scope["path"].startswith(CONSOLE)
    )


def _authenticate(service: Service, scope: Scope, headers: dict[bytes, bytes]) -> Caller:
    """The caller, if they may use this path and their rate allows it; raises `AccessError`."""
    needed = needed_for(scope["path"])
    if needed is not None or is_console(scope["path"]):
        check_host(service.settings, headers.get(b"host"))
    if needed is None:
        return ANONYMOUS
    given = authorization(scope["path"], headers)
    caller = service.access.identify(given, _host(scope, "client"), _host(scope, "server"))
    check_role(caller, scope["path"])
    if PREDICT in needed and caller.requests is not None and not is_console(scope["path"]):  # what it asks is counted
        caller.requests.take(1, f"the rate of requests of the key {caller.name}")
    return caller


async def _watch_loop(metrics: Metrics) -> None:
    """Note how late the event loop is, again and again."""
    while True:
        due = time.monotonic() + LOOK_SECONDS
        await asyncio.sleep(LOOK_SECONDS)
        metrics.late(max(0.0, time.monotonic() - due))


def _request_id(given: bytes | None) -> str:
    """The one that the caller sent, if it is safe to log, else a new one."""
    text = (given or b"").decode("latin-1")
    return text if _REQUEST_ID.fullmatch(text) else uuid.uuid4().hex


def _response_headers(call: RequestContext) -> list[tuple[bytes, bytes]]:
    """The headers that every response gets: the request's id, and which package answered."""
    headers = [(b"x-request-id", call.id.encode()), (b"x-content-type-options", b"nosniff")]
    if call.digest:
        headers += [(b"x-sparsehub-task", call.task.encode()), (b"x-sparsehub-digest", call.digest.encode())]
    return headers


def _is_page(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether a response is for a browser to show, and says nothing of its own about who may show it inside a page."""
    named = {name.lower(): value for name, value in headers}
    return named.get(b"content-type", b"").startswith(b"text/html") and b"content-security-policy" not in named


def _host(scope: Scope, end: str) -> str | None:
    """The address at one end of the connection; None for a local socket. What a proxy says that is no address, which
    may be long and of any signs, is not kept."""
    found = scope.get(end)
    if found is None:
        return None
    try:
        return str(ipaddress.ip_address(found[0]))
    except ValueError:
        return "unknown"


def _route(scope: Scope) -> str:
    """The path as the route declares it: metrics by the requested path would grow without bound."""
    declared = getattr(scope.get("route"), "path", None)
    return declared or (scope["path"] if scope["path"] in _KNOWN else "(unknown)")
