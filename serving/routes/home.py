"""GET /: where things are: for a browser a page of links, for everybody else JSON."""

from __future__ import annotations

from html import escape

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse

from serving.auth.authenticator import CONSOLE, HOME
from serving.auth.pages import place, small_page
from serving.protocol.home import EndpointHome
from serving.request.service import RunningService

router = APIRouter()
_VARY = {"vary": "accept"}
_PLACES = {
    "console": ("Console", "ask tasks, see what is served and how fast"),
    "docs": ("API", "all routes, to read and to try"),
    "models": ("Models", "what can stand in <code>model</code>"),
    "tasks": ("Tasks", "where each task is, and who uses it"),
    "metrics": ("Metrics", "for Prometheus"),
    "openapi": ("OpenAPI", "all routes, for programs"),
    "ready": ("Health", "200 while requests are answered"),
}
_NO_CONSOLE = "off: <code>sparsehub serve --console</code> switches it on"


@router.get(HOME, response_model=EndpointHome)
async def home(request: Request, response: Response, service: RunningService) -> EndpointHome | Response:
    """Where things are. It says nothing of what is served, and asks nobody for a key."""
    paths = {
        "console": f"{CONSOLE}/" if service.settings.console else None,
        "docs": "/docs",
        "openapi": "/openapi.json",
        "models": "/v1/models",
        "tasks": "/v1/tasks",
        "metrics": "/metrics",
        "ready": "/v2/health/ready",
    }
    found = {name: None if path is None else place(request.scope, path) for name, path in paths.items()}
    response.headers.update(_VARY)
    if "text/html" in request.headers.get("accept", ""):
        return _page(found, keys=service.settings.keys is not None)
    return EndpointHome(object="endpoint", name="sparsehub", **found)  # type: ignore[arg-type]


def _page(paths: dict[str, str | None], keys: bool) -> HTMLResponse:
    lines = "".join(_line(name, paths[name]) for name in _PLACES)
    ask = "Most of it asks for a key: <code>Authorization: Bearer sk-...</code>; the console has a page to sign in."
    body = f"<h1>sparsehub</h1><p>One backbone, many tasks. Here is:</p><dl>{lines}</dl>"
    page = small_page("sparsehub", body + (f'<p class="foot">{ask}</p>' if keys else ""), width=460)
    page.headers.update(_VARY)
    return page


def _line(name: str, path: str | None) -> str:
    title, what = _PLACES[name]
    if path is None:
        return f"<dt>{title}</dt><dd>{_NO_CONSOLE}</dd>"
    return f'<dt><a href="{escape(path)}">{title}</a></dt><dd>{what}</dd>'
