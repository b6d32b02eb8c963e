"""The FastAPI app: routes, and every error in OpenAI's shape."""

from __future__ import annotations

import logging

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from serving.openapi import ERROR_RESPONSES, install_openapi
from serving.protocol.errors import error_body
from serving.request.error_responses import failure, http_failure, malformed
from serving.request.middleware import RequestMiddleware
from serving.routes import ROUTERS
from sparsehub import __version__
from sparsehub.errors import SparsehubError

log = logging.getLogger("sparsehub")


def behind_middleware(app: FastAPI) -> RequestMiddleware:
    """The app with its middleware, for a server that is not BentoML's."""
    return RequestMiddleware(app, app.state)


def create_app() -> FastAPI:
    """The app without its service, which is set as `app.state.service` once the engine has started.

    It is only to be served behind `RequestMiddleware`, which makes the context that the routes read.
    """
    app = FastAPI(title="sparsehub", version=__version__, docs_url="/docs", redoc_url=None, responses=ERROR_RESPONSES)
    install_openapi(app)
    for router in ROUTERS:
        app.include_router(router)
    app.add_exception_handler(SparsehubError, _on_error)
    app.add_exception_handler(RequestValidationError, _on_malformed)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(Exception, _on_unexpected)
    return app


async def _on_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, SparsehubError)  # it is registered for nothing else
    return failure(error)


async def _on_malformed(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # it is registered for nothing else
    return malformed(request, error)


async def _on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # it is registered for nothing else
    return http_failure(request, error)


async def _on_unexpected(request: Request, error: Exception) -> Response:
    log.exception("unexpected error in %s", request.url.path, exc_info=error)
    return JSONResponse(error_body("an unexpected error; the server's log has it", 500), 500)
