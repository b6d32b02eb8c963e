"""The BentoML service: `bentoml serve`, `bentoml build` and `sparsehub serve` all start this one."""

from __future__ import annotations

import os

import bentoml
from starlette.types import Receive, Scope, Send

from serving import bento_metrics, http_protocol
from serving.app import create_app
from serving.banner import show_banner
from serving.preflight import check_settings
from serving.request.middleware import RequestMiddleware
from serving.runtime import freeze_heap, start_service
from serving.settings import STARTED_BY, VARIABLES, naming_of, read_settings, server_timeout
from serving.supervision import connection_guard, one_line_errors, starting_worker, supervise
from sparsehub.extras import require
from sparsehub.settings import errors_named

OWN_METRICS = ("sparsehub_", "# HELP sparsehub_", "# TYPE sparsehub_")
app = create_app()
bento_metrics.install(app)
http_protocol.install()
http_protocol.trust_proxies(os.environ)


async def every_route(scope: Scope, receive: Receive, send: Send) -> None:
    """The app as BentoML sees it: of a FastAPI object it would look up the routes, and answer unknown ones itself."""
    await app(scope, receive, send)


@bentoml.service(
    name="sparsehub",
    workers=1,
    traffic={"timeout": server_timeout(os.environ)},
    metrics={"enabled": True},
    logging={"access": {"enabled": False}},  # ours says more
)
@bentoml.asgi_app(every_route, path="/")
class SparsehubService:
    """One worker, one model thread, one backbone."""

    def __init__(self) -> None:
        with starting_worker(), errors_named(naming_of(os.environ)):
            settings = read_settings(os.environ)
            if settings.console:
                require("gradio", "console")
            http_protocol.set_bounds(settings)
            http_protocol.set_guard(connection_guard(settings.connections))
            self._running = start_service(settings)
            self._service = app.state.service = self._running.service
            if settings.console:
                from serving.console.mount import add_console  # lazy: Gradio

                add_console(app, self._service)
            freeze_heap()
            show_banner(self._service, os.environ)

    @bentoml.on_deployment
    @staticmethod
    def prepare() -> None:
        """What BentoML's process manager calls before it starts a worker."""
        with one_line_errors(), errors_named(VARIABLES):
            if STARTED_BY not in os.environ:  # `sparsehub serve` has checked them
                check_settings(read_settings(os.environ))
        supervise()

    def __is_ready__(self) -> bool:
        return self._service.engine.healthy

    def __metrics__(self, text: str) -> str:
        """BentoML's metrics with ours as they are now: its text was made before the engine's gauges were read."""
        theirs = [line for line in text.splitlines(keepends=True) if not line.startswith(OWN_METRICS)]
        return "".join(theirs) + self._service.metrics.text(self._service.engine, self._service.reconciler)

    @bentoml.on_shutdown
    def shutdown(self) -> None:
        """Finish what runs, refuse what comes."""
        self._running.stop()


# BentoML makes the class a service object.
SparsehubService.add_asgi_middleware(RequestMiddleware, state=app.state)  # type: ignore[attr-defined]
