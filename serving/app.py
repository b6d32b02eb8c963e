"""The FastAPI app: routes, and every error in OpenAI's shape."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import anyio
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from serving.answering import CLIENT_LEFT, ClientLeft
from serving.metrics import Metrics
from serving.routes import ROUTERS
from serving.settings import Settings
from serving.wire import error_body, status_of
from sparsehub import __version__
from sparsehub.engine import Engine, TaskInfo, Ticket
from sparsehub.errors import QueueFullError, SparsehubError

log = logging.getLogger("sparsehub")


@dataclass(frozen=True)
class Service:
    """What the routes work with; it hangs at `app.state.service`. started: seconds since 1970."""

    settings: Settings
    engine: Engine
    metrics: Metrics
    started: int = field(default_factory=lambda: int(time.time()))

    def is_backbone(self, model: str) -> bool:
        """Whether `model` names the plain backbone."""
        return model in (self.settings.backbone, "backbone")

    async def info(self, reference: str) -> TaskInfo:
        """What a task is; off the event loop, since its package may have to be read first."""
        return await anyio.to_thread.run_sync(self.engine.info, reference, self.settings.timeout)

    async def submit(
        self, verb: Callable[..., Ticket[Any]], reference: str | None, inputs: Sequence[Any], truncate: bool
    ) -> Ticket[Any]:
        """Call an engine verb off the event loop: it tokenises, which takes a while for many rows."""
        call = functools.partial(verb, reference, inputs, truncate=truncate, timeout=self.settings.timeout)
        return await anyio.to_thread.run_sync(call)


def create_app() -> FastAPI:
    """The app, without a service yet: whoever starts the engine sets `app.state.service`."""
    app = FastAPI(title="sparsehub", version=__version__, docs_url="/docs", redoc_url=None)
    for router in ROUTERS:
        app.include_router(router)
    app.add_exception_handler(SparsehubError, _on_error)
    app.add_exception_handler(RequestValidationError, _on_malformed)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(Exception, _on_unexpected)
    app.middleware("http")(_count)
    return app


async def _count(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    status = 500  # of an error that no handler in here answers
    try:
        response = await call_next(request)
        status = response.status_code
        return response
    finally:
        route = getattr(request.scope.get("route"), "path", "(unknown)")
        request.app.state.service.metrics.request(route, status)


async def _on_error(request: Request, error: Exception) -> Response:
    if isinstance(error, ClientLeft):
        return Response(status_code=CLIENT_LEFT)
    status = status_of(error)
    headers = {"Retry-After": str(max(1, round(error.retry_after)))} if isinstance(error, QueueFullError) else None
    return JSONResponse(error_body(str(error), status, code=type(error).__name__), status, headers)


async def _on_malformed(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # it is registered for nothing else
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"] if part != "body")
    message = f"the body is malformed: {place}: {first['msg']}" if place else f"the body is malformed: {first['msg']}"
    return JSONResponse(error_body(message, 400, param=place or None, code="malformed_body"), 400)


async def _on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # it is registered for nothing else
    message = f"{request.method} {request.url.path}: {error.detail}"
    return JSONResponse(error_body(message, error.status_code), error.status_code, error.headers)


async def _on_unexpected(request: Request, error: Exception) -> Response:
    log.exception("unexpected error in %s", request.url.path, exc_info=error)
    return JSONResponse(error_body("an unexpected error; the server's log has it", 500), 500)
