"""The endpoint's own small pages, sign-in and home: plain HTML that runs nothing and loads nothing."""

from __future__ import annotations

from html import escape

from starlette.responses import HTMLResponse
from starlette.types import Scope

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
_HEADERS = {"content-security-policy": _POLICY, "cache-control": "no-store", "referrer-policy": "no-referrer"}
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<title>{title}</title><style>
:root{{color-scheme:light dark;--ink:#1d2429;--dim:#56646d;--line:#cfd8dd;--back:#f4f7f8;--card:#fff;--bad:#a3261b;
--link:#0f766e}}
@media(prefers-color-scheme:dark){{:root{{--ink:#e6ebee;--dim:#9aa7af;--line:#3a4851;--back:#0f1518;--card:#182126;
--bad:#ff9a8d;--link:#5eead4}}}}
*{{box-sizing:border-box}}body{{margin:0;min-height:100vh;display:grid;place-items:center;padding:20px;
background:var(--back);color:var(--ink);font:15px/1.5 system-ui,sans-serif}}
main{{width:100%;max-width:{width}px;background:var(--card);border:1px solid var(--line);border-radius:10px;
padding:26px}}
h1{{font-size:20px;margin:0 0 4px}}p{{margin:0 0 16px;color:var(--dim)}}p.bad{{color:var(--bad)}}a{{color:var(--link)}}
label{{display:block;font-weight:600;margin-bottom:6px}}input,button{{width:100%;font:inherit;padding:9px 11px;
border-radius:7px;border:1px solid var(--line)}}input{{background:transparent;color:inherit}}
button{{margin-top:14px;background:#0f766e;border-color:#0f766e;color:#fff;font-weight:600;cursor:pointer}}
p.foot{{margin:18px 0 0;font-size:13px}}dl{{margin:0;display:grid;gap:2px}}dt{{font-weight:600}}
dd{{margin:0 0 10px;color:var(--dim)}}code{{font:13px ui-monospace,monospace;overflow-wrap:anywhere}}
</style></head><body><main>{body}</main></body></html>
"""


def small_page(title: str, body: str, status: int = 200, width: int = 380) -> HTMLResponse:
    """A page of its own in the middle of the window. body: HTML whose values are escaped; width: in pixels, at most."""
    return HTMLResponse(_PAGE.format(title=escape(title), body=body, width=width), status, _HEADERS)


def place(scope: Scope, path: str) -> str:
    """A path of this endpoint as the browser sees it, where a proxy serves it below another one."""
    return str(scope.get("app_root_path", scope.get("root_path", ""))).rstrip("/") + path
