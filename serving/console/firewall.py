"""What of Gradio's app a browser may reach: the page, its own scripts, and its events. All else is not there.

Gradio can also take uploads, give files, follow URLs and be called as an API. Nothing of that is needed here, so it is
not left to Gradio's checks: no file of this machine, no URL and no hub is reached by what comes in here.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import parse_qs, urlsplit

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.auth import Authenticator
from serving.auth.authenticator import CONSOLE, SIGN_IN, SIGN_OUT, check_role
from serving.auth.sign_in import sign_in_page, signed_in, signed_out
from serving.request.body import replay
from serving.request.error_responses import failure
from sparsehub.errors import AccessError, ForbiddenError, NotFoundError, RequestError, SparsehubError

_PAGE = ("GET", "/")
_JOIN = ("POST", "/gradio_api/queue/join")
_OPEN = frozenset(
    {
        _PAGE,
        _JOIN,
        ("GET", "/gradio_api/queue/data"),
        ("GET", "/config"),
        ("GET", "/theme.css"),
        ("GET", "/favicon.ico"),
    }
)
_HEARTBEAT = "/gradio_api/heartbeat/"  # held open for as long as the page is, it would keep a server from ending
_OWN_FILES = ("/assets/", "/static/")  # that Gradio brings
_POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; font-src 'self' data:; connect-src 'self'; worker-src 'self' blob:; form-action 'self'; "
    "base-uri 'self'; frame-ancestors 'none'"
)
_HEADERS = [
    (b"content-security-policy", _POLICY.encode()),
    (b"referrer-policy", b"no-referrer"),
]


class Firewall:
    """Wraps Gradio's app, inside the endpoint's middleware. start: is called once, before the first event."""

    def __init__(self, app: ASGIApp, access: Authenticator, start: Callable[[], Awaitable[None]]):
        self._app, self._access, self._start = app, access, start
        self._started = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._let_in(scope, receive, send)
        except SparsehubError as error:
            await failure(error)(scope, receive, send)

    async def _let_in(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        if scope["method"] == "POST":
            _check_site(request)
        if scope["method"] == "POST" and scope["path"] in (SIGN_IN, SIGN_OUT):
            response = await self._sign_in(request) if scope["path"] == SIGN_IN else signed_out(scope)
            await response(scope, receive, send)
            return
        if scope["method"] == "GET" and scope["path"].startswith(CONSOLE + _HEARTBEAT):
            await Response(media_type="text/event-stream")(scope, receive, send)
            return
        wanted = (scope["method"], scope["path"].removeprefix(CONSOLE))
        if wanted not in _OPEN and not (wanted[0] == "GET" and wanted[1].startswith(_OWN_FILES)):
            raise NotFoundError(f"the console has no {scope['path'][:200]}")
        if wanted == _JOIN:
            receive = await _checked(request)
        if not self._started:
            self._started = True
            await self._start()
        await self._app(dict(scope), receive, _marked(send))  # a copy: Gradio's routes are no routes of the endpoint

    async def _sign_in(self, request: Request) -> Response:
        form = parse_qs((await request.body()).decode(errors="replace"))
        key = form.get("key", [""])[0].strip()
        client, server = (request.scope.get(end) for end in ("client", "server"))
        try:
            caller = self._access.identify(f"Bearer {key}", client and client[0], server and server[0])
            check_role(caller, CONSOLE)
        except AccessError as error:
            return sign_in_page(request.scope, error)
        return signed_in(request.scope, key)


def _check_site(request: Request) -> None:
    """Raises `ForbiddenError` where a page of another site has a browser send this, with the rights of its user."""
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    foreign_origin = origin is not None and urlsplit(origin).netloc != request.headers.get("host")
    if site not in (None, "same-origin") or (site is None and foreign_origin):
        raise ForbiddenError("the console answers its own page only", found=(origin or site or "")[:200])


async def _checked(request: Request) -> Receive:
    """The event, which carries plain values only. An object could name a file or a URL that Gradio would go and get."""
    body = await request.body()
    try:
        data = json.loads(body)["data"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise RequestError("not an event of the console") from error
    if not isinstance(data, list) or not all(map(_is_plain, data)):
        raise RequestError("an event of the console carries plain values only", found="an object")
    return replay(body, request.receive)


def _is_plain(value: Any) -> bool:
    if isinstance(value, list):
        return all(part is None or isinstance(part, str | int | float) for part in value)
    return value is None or isinstance(value, str | int | float)


def _marked(send: Send) -> Send:
    async def marked(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), *_HEADERS]}
        await send(message)

    return marked
