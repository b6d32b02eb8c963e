"""Everything that one process of an endpoint runs, whichever server it stands in."""

from __future__ import annotations

import gc
import logging
from dataclasses import dataclass

from serving.catalog.router import Router
from serving.config_watch import Watcher
from serving.request.logs import write_lines
from serving.request.metrics import Metrics
from serving.request.service import Service
from serving.settings import Settings
from serving.startup import start_access, start_catalog, start_engine


@dataclass(frozen=True)
class Runtime:
    """service: what the routes work with; keys: what follows the key file, where there is one."""

    service: Service
    keys: Watcher | None

    def stop(self) -> None:
        """Finish what runs, refuse what comes."""
        if self.keys is not None:
            self.keys.stop()
        if self.service.reconciler is not None:
            self.service.reconciler.stop()
        self.service.engine.stop()


def start_service(settings: Settings) -> Runtime:
    """Start the engine, what follows its documents, and the log; raises what a user can mend."""
    logging.getLogger("sparsehub").setLevel(logging.INFO)
    write_lines()
    metrics = Metrics()
    access, keys = start_access(settings)
    engine, router = start_engine(settings, metrics), Router()
    reconciler = start_catalog(settings, engine, router)
    return Runtime(Service(settings, engine, metrics, access, router, reconciler), keys)


def freeze_heap() -> None:
    """Leave what is there now out of garbage collections; a process that serves calls this once, when it has started.

    A full collection looks at every object, and all threads wait meanwhile: .2 s with torch and transformers loaded,
    which was the longest wait of a lone row on a busy endpoint.
    """
    gc.collect()
    gc.freeze()
