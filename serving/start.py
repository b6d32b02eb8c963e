"""An engine with its tasks, from settings: where packages come from meets what runs them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from serving.settings import Settings
from sparsehub.backbone import load_backbone
from sparsehub.engine import BatchReport, Engine, Limits
from sparsehub.errors import NotFoundError
from sparsehub.hub import Hub, open_hub
from sparsehub.hub.loading import load_package

log = logging.getLogger("sparsehub")


def start_engine(settings: Settings, observe: Callable[[BatchReport], None] = lambda _: None) -> Engine:
    """Load the backbone and every task, and start the model thread; raises what a user can mend."""
    began = time.monotonic()
    backbone = load_backbone(
        settings.backbone, dtype=settings.dtype, device=settings.device, revision=settings.revision
    )
    limits = Limits(settings.queue_rows, settings.batch_tokens, settings.batch_rows)
    engine = Engine(backbone, limits, observe)
    hub = open_hub(settings.hub) if settings.hub else None
    for reference in settings.tasks or _everything(hub):
        task = engine.add(load_package(reference, hub))
        log.info("task %s@%s %s", task.manifest.name, task.manifest.version, task.digest)
    engine.start()
    log.info("%d tasks on %s in %.1f s", len(engine.tasks.all()), settings.backbone, time.monotonic() - began)
    return engine


def _everything(hub: Hub | None) -> list[str]:
    """The newest version of every task of a hub."""
    names = sorted({entry.name for entry in hub.list() if not entry.error}) if hub else []
    if not names:
        raise NotFoundError("the hub holds no task", fix="push one: sparsehub push PACKAGE HUB --version 1.0.0")
    return names
