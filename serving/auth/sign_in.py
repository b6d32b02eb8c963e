"""Signing in with a browser: the page that asks for a key, and the cookie that keeps it for the console."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from html import escape

from starlette.responses import RedirectResponse, Response
from starlette.types import Scope

from serving.auth.authenticator import CONSOLE, COOKIE, HOME, SIGN_IN, cookie_key
from serving.auth.pages import place, small_page
from sparsehub.errors import AccessError, SparsehubError, UnauthenticatedError

_BODY = """<form method="post" action="{action}"><h1>sparsehub console</h1>
<p>Sign in with a key of this endpoint. It is kept for this browser session only.</p>{problem}
<label for="key">Key</label><input id="key" name="key" type="password" autocomplete="off" required autofocus>
<button>Sign in</button></form><p class="foot"><a href="{home}">What else is at this endpoint</a></p>"""


def signed_in(scope: Scope, key: str) -> Response:
    """A redirect to the console that sets the key as a cookie, unreadable to scripts and never sent by another site."""
    response = _to_page(scope)
    value = base64.urlsafe_b64encode(key.encode()).decode()
    response.set_cookie(
        COOKIE, value, path=place(scope, CONSOLE), httponly=True, samesite="strict", secure=scope["scheme"] == "https"
    )
    return response


def signed_out(scope: Scope) -> Response:
    response = _to_page(scope)
    response.delete_cookie(COOKIE, path=place(scope, CONSOLE), httponly=True, samesite="strict")
    return response


def sign_in_page(scope: Scope, error: SparsehubError | None = None) -> Response:
    """The page that asks for a key. error: why the last one was refused, where there was one."""
    problem = "" if error is None else f'<p class="bad" role="alert">{escape(_why(error))}</p>'
    body = _BODY.format(action=escape(place(scope, SIGN_IN)), home=escape(place(scope, HOME)), problem=problem)
    status = 401 if error is None or isinstance(error, UnauthenticatedError) else 403
    return small_page("sparsehub console: sign in", body, status)


def _why(error: SparsehubError) -> str:
    """The error without the advice for API clients."""
    return str(error) if error.found is None else f"{error.problem}; found: {error.found}"


def refusal(scope: Scope, headers: Mapping[bytes, bytes], error: SparsehubError) -> Response | None:
    """What a browser is shown in place of an error when it asks for the console without a good key."""
    if scope["method"] != "GET" or scope["path"] not in (CONSOLE, f"{CONSOLE}/") or not isinstance(error, AccessError):
        return None
    signed_in = cookie_key(headers) is not None
    if not signed_in and not isinstance(error, UnauthenticatedError):
        return None  # another key would change nothing
    return sign_in_page(scope, error if signed_in else None)


def _to_page(scope: Scope) -> Response:
    return RedirectResponse(f"{place(scope, CONSOLE)}/", 303, {"cache-control": "no-store"})
