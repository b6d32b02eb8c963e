"""The BentoML service: `bentoml serve`, `bentoml build` and `sparsehub serve` all start this one."""

from __future__ import annotations

import logging
import os

import bentoml

from serving.app import Service, create_app
from serving.metrics import Metrics
from serving.settings import read_settings
from serving.start import start_engine

log = logging.getLogger("sparsehub")
app = create_app()


@bentoml.service(name="sparsehub", workers=1, traffic={"timeout": 60}, metrics={"enabled": True})
@bentoml.asgi_app(app, path="/")
class SparsehubService:
    """One worker, one model thread, one backbone."""

    def __init__(self) -> None:
        logging.getLogger("sparsehub").setLevel(logging.INFO)
        settings = read_settings(os.environ)
        metrics = Metrics()
        self._service = Service(settings, start_engine(settings, metrics.observe), metrics)
        app.state.service = self._service

    def __is_ready__(self) -> bool:
        return self._service.engine.healthy

    def __metrics__(self, text: str) -> str:
        """BentoML's metrics, which are process-wide, after a fresh look at the engine's gauges."""
        own = self._service.metrics.text(self._service.engine)
        return text if "sparsehub_tasks" in text else text + own

    @bentoml.on_shutdown
    def shutdown(self) -> None:
        """Finish what runs, refuse what comes."""
        self._service.engine.stop()
