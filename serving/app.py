"""The FastAPI app: routes, and every error in OpenAI's shape."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from serving.auth import Authenticator
from serving.auth.caller import BACKBONE
from serving.catalog.reconciler import Reconciler
from serving.catalog.router import Routed, Router
from serving.error_responses import failure
from serving.metrics import Metrics
from serving.middleware import RequestMiddleware
from serving.openapi import ERROR_RESPONSES, install_openapi
from serving.protocol.errors import error_body
from serving.request.context import RequestContext, current_request
from serving.routes import ROUTERS
from serving.settings import Settings
from sparsehub import __version__
from sparsehub.engine import Engine, PendingRequest, TaskInfo
from sparsehub.errors import RequestError, SparsehubError, UnknownTaskError
from sparsehub.task_ref import ModelRef, parse_model

log = logging.getLogger("sparsehub")


@dataclass(frozen=True)
class Service:
    """What the routes work with; it hangs at `app.state.service`. started: seconds since 1970."""

    settings: Settings
    engine: Engine
    metrics: Metrics
    access: Authenticator = field(default_factory=Authenticator)
    router: Router = field(default_factory=Router)
    reconciler: Reconciler | None = None
    started: int = field(default_factory=lambda: int(time.time()))

    def is_backbone(self, model: str) -> bool:
        """Whether `model` names the plain backbone."""
        return model in (self.settings.backbone, "backbone")

    async def info(self, reference: str) -> TaskInfo:
        """What a task is; off the event loop, since its package may have to be read first.

        Raises `ForbiddenError` where it is not the caller's, and `UnknownTaskError`.
        """
        call = current_request()
        routed = self._route(call, reference)
        assert routed.model is not None  # only the plain backbone has none
        with _discreet(call, reference):
            info = await anyio.to_thread.run_sync(self.engine.info, routed.model, self.settings.timeout)
        call.served = info
        return info

    async def submit(
        self, verb: Callable[..., PendingRequest[Any]], reference: str | None, inputs: Sequence[Any], truncate: bool
    ) -> PendingRequest[Any]:
        """Call an engine verb off the event loop: it tokenises, which takes a while for many rows.

        reference: None for the plain backbone. Raises what `info` and the verb raise, and `RateLimitError`.
        """
        call = current_request()
        if len(inputs) > self.settings.max_items:
            limit = f"at most {self.settings.max_items}"
            raise RequestError("too many inputs in one request", found=len(inputs), expected=limit, fix="send fewer")
        routed = self._route(call, reference)
        for route in routed.routes:
            if route.items is not None:
                route.items.take(len(inputs), f"the quota of items of the task {route.name}")
        options = {"truncate": truncate, "timeout": self.settings.timeout, "admit": self._admit(call, routed)}
        with _discreet(call, reference or BACKBONE):
            ticket: PendingRequest[Any] = await anyio.to_thread.run_sync(
                functools.partial(verb, routed.model, inputs, **options)
            )
        call.items, call.tokens = len(ticket.futures), ticket.tokens
        call.served = ticket.task or call.served
        return ticket

    def finish(self, call: RequestContext) -> None:
        """The answer is sent, or will never be: nothing is held for it any more."""
        for routed in call.routed.values():
            self.router.release(routed)

    def _route(self, call: RequestContext, reference: str | None) -> Routed:
        """What a reference means for this request, once and for all; None is the plain backbone."""
        if reference is None:
            call.caller.check_task(BACKBONE)
            return Routed(None)
        model = parse_model(reference)
        check_model(call, model)
        if reference not in call.routed:
            with _discreet(call, reference):
                call.routed[reference] = self.router.hold(model, call.sticky)
        return call.routed[reference]

    def _admit(self, call: RequestContext, routed: Routed) -> Callable[[int], None]:
        """What the engine asks once it knows a request's tokens, before any of its rows waits."""

        def admit(tokens: int) -> None:
            if tokens > self.settings.max_tokens:
                limit = f"at most {self.settings.max_tokens}"
                raise RequestError(
                    "too many tokens in one request", found=tokens, expected=limit, fix="send fewer inputs"
                )
            if call.caller.tokens is not None:
                call.caller.tokens.take(tokens, f"the rate of tokens of the key {call.caller.name}")
            for route in routed.routes:
                if route.tokens is not None:
                    route.tokens.take(tokens, f"the quota of tokens of the task {route.name}")

        return admit


def check_model(call: RequestContext, model: ModelRef) -> None:
    """Raises `ForbiddenError` unless every task that `model` names is the caller's."""
    for name in model.names:
        call.caller.check_task(name)


@contextmanager
def _discreet(call: RequestContext, reference: str) -> Iterator[None]:
    """An unknown task's error names one like it: not to a caller who is not to know all of them."""
    try:
        yield
    except UnknownTaskError as error:
        if call.caller.sees_all:
            raise
        raise UnknownTaskError(f"unknown task {reference[:200]!r}") from error


def behind_middleware(app: FastAPI) -> RequestMiddleware:
    """The app behind its gate, for a server that is not BentoML's."""
    return RequestMiddleware(app, lambda: app.state.service)


def create_app() -> FastAPI:
    """The app, without a service yet: whoever starts the engine sets `app.state.service`.

    It is to be served behind a `RequestMiddleware` only, which makes the call that the routes answer.
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
