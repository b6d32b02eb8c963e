"""Signing in with a browser: the page that asks for a key, and the cookie that keeps it for the console."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from html import escape

from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import Scope

from serving.auth.authenticator import CONSOLE, COOKIE, SIGN_IN, cookie_key
from sparsehub.errors import AccessError, SparsehubError, UnauthenticatedError

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<title>sparsehub console: sign in</title><style>
:root{{color-scheme:light dark;--ink:#1d2429;--dim:#5c6a73;--line:#cfd8dd;--back:#f4f7f8;--card:#fff;--bad:#a3261b}}
@media(prefers-color-scheme:dark){{:root{{--ink:#e6ebee;--dim:#9aa7af;--line:#3a4851;--back:#0f1518;--card:#182126;
--bad:#ff9a8d}}}}
*{{box-sizing:border-box}}body{{margin:0;min-height:100vh;display:grid;place-items:center;padding:20px;
background:var(--back);color:var(--ink);font:15px/1.5 system-ui,sans-serif}}
form{{width:100%;max-width:380px;background:var(--card);border:1px solid var(--line);border-radius:10px;padding:26px}}
h1{{font-size:20px;margin:0 0 4px}}p{{margin:0 0 16px;color:var(--dim)}}p.bad{{color:var(--bad)}}
label{{display:block;font-weight:600;margin-bottom:6px}}input,button{{width:100%;font:inherit;padding:9px 11px;
border-radius:7px;border:1px solid var(--line)}}input{{background:transparent;color:inherit}}
button{{margin-top:14px;background:#0f766e;border-color:#0f766e;color:#fff;font-weight:600;cursor:pointer}}
</style></head><body><form method="post" action="{action}"><h1>sparsehub console</h1>
<p>Sign in with a key of this endpoint. It is kept for this browser session only.</p>{problem}
<label for="key">Key</label><input id="key" name="key" type="password" autocomplete="off" required autofocus>
<button>Sign in</button></form></body></html>
"""


def signed_in(scope: Scope, key: str) -> Response:
    """A redirect to the console that sets the key as a cookie, unreadable to scripts and never sent by another site."""
    response = _to_page(scope)
    value = base64.urlsafe_b64encode(key.encode()).decode()
    response.set_cookie(
        COOKIE, value, path=_place(scope, CONSOLE), httponly=True, samesite="strict", secure=scope["scheme"] == "https"
    )
    return response


def signed_out(scope: Scope) -> Response:
    response = _to_page(scope)
    response.delete_cookie(COOKIE, path=_place(scope, CONSOLE), httponly=True, samesite="strict")
    return response


def sign_in_page(scope: Scope, error: SparsehubError | None = None) -> Response:
    """The page that asks for a key. error: why the last one was refused, where there was one."""
    problem = "" if error is None else f'<p class="bad" role="alert">{escape(_why(error))}</p>'
    text = _PAGE.format(action=escape(_place(scope, SIGN_IN)), problem=problem)
    headers = {"content-security-policy": _POLICY, "cache-control": "no-store", "referrer-policy": "no-referrer"}
    return HTMLResponse(text, 401 if error is None or isinstance(error, UnauthenticatedError) else 403, headers)


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
    return RedirectResponse(f"{_place(scope, CONSOLE)}/", 303, {"cache-control": "no-store"})


def _place(scope: Scope, path: str) -> str:
    """A path of this endpoint as the browser sees it, where a proxy serves it below another one."""
    return str(scope.get("app_root_path", scope.get("root_path", ""))).rstrip("/") + path
