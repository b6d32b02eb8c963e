"""BentoML's own metrics, so that strangers cannot make them grow and endpoints of one user do not share them."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from typing import Any

from bentoml._internal.configuration.containers import BentoMLContainer
from bentoml._internal.server.http import instruments
from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

OTHER = "(other)"
_SERVED = ("/healthz", "/livez", "/readyz")  # by BentoML, with no route of ours
_PATH = "sparsehub.path"  # of a scope: the path that was asked for


def install(app: FastAPI) -> None:
    """Label requests by the paths of the app's routes, and give this endpoint a metrics folder of its own."""
    paths = frozenset((*_SERVED, *(getattr(route, "path", "") for route in app.routes)))

    class KnownPathMetrics(instruments.RunnerTrafficMetricsMiddleware):  # type: ignore[misc]
        """BentoML's, which would make a label, and a place on the disk, of every path that anybody asks for."""

        def __init__(self, app: ASGIApp, **options: Any):
            super().__init__(_asked(app), **options)

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http" and scope["path"] != "/metrics":
                path = scope["path"]
                scope = {**scope, "path": path if path in paths else OTHER, _PATH: path}
            await super().__call__(scope, receive, send)

    instruments.RunnerTrafficMetricsMiddleware = KnownPathMetrics
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:  # the process manager: its worker inherits the folder
        folder = tempfile.mkdtemp(prefix="sparsehub-metrics-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        BentoMLContainer.prometheus_multiproc_dir.set(folder)


def _asked(app: ASGIApp) -> ASGIApp:
    """The app with the path that was asked for, below the middleware that must not see it."""

    async def asked(scope: Scope, receive: Receive, send: Send) -> None:
        if _PATH in scope:
            scope = {**scope, "path": scope[_PATH]}
        await app(scope, receive, send)

    return asked
