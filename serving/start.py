"""An engine with its tasks, from settings: where packages come from meets what runs them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

from serving.settings import Settings
from sparsehub.backbone import load_backbone
from sparsehub.engine import BatchReport, Budgets, Engine, GenerationLimits, Limits, Task
from sparsehub.engine.holding import UNLIMITED
from sparsehub.errors import NotFoundError, UsageError
from sparsehub.hub import PackageHub, open_hub
from sparsehub.hub.loading import load_package
from sparsehub.package import MANIFEST_FILE, read_manifest, read_package

log = logging.getLogger("sparsehub")


def start_engine(settings: Settings, observe: Callable[[BatchReport], None] = lambda _: None) -> Engine:
    """Load the backbone and every task, and start the model thread; raises what a user can mend."""
    began = time.monotonic()
    backbone = load_backbone(
        settings.backbone, dtype=settings.dtype, device=settings.device, revision=settings.revision
    )
    limits = Limits(settings.queue_rows, settings.batch_tokens, settings.batch_rows)
    texts = GenerationLimits(cache_tokens=settings.cache_tokens, new_tokens=settings.new_tokens)
    engine = Engine(backbone, limits, observe, budgets=_budgets(settings), mode=settings.mode, generation=texts)
    hub = open_hub(settings.hub) if settings.hub else None
    for reference in settings.tasks or _everything(hub):
        task = task_of(reference, hub)
        engine.register(task)
        if settings.tasks:  # what is named must be right; all of a hub is read as it is asked for
            engine.load(f"{task.name}@{task.digest}")
        log.info("task %s %s", task.reference, task.digest)
    engine.start()
    log.info("%d tasks on %s in %.1f s", len(engine.tasks), settings.backbone, time.monotonic() - began)
    return engine


def task_of(reference: str, hub: PackageHub | None) -> Task:
    """The task that a package folder or a reference means; of its package no more than the manifest is read."""
    if (Path(reference) / MANIFEST_FILE).is_file():
        manifest = read_manifest(Path(reference))
        return Task(manifest.name, manifest.version, manifest.digest, lambda: read_package(Path(reference)))
    if hub is None:
        raise UsageError(f"{reference!r} is no package folder, and no hub is given", fix="give --hub")
    resolved = hub.resolve(reference)
    version = resolved.version or resolved.digest
    return Task(resolved.name, version, resolved.digest, lambda: load_package(resolved.pinned, hub))


def _budgets(settings: Settings) -> Budgets:
    mebibyte = 1 << 20
    device = settings.device_mib * mebibyte if settings.device_mib else UNLIMITED
    return Budgets(device, settings.host_mib * mebibyte)


def _everything(hub: PackageHub | None) -> list[str]:
    """Every task of a hub, by the name that means what its `latest` says; no package is read for that."""
    names = hub.home.names() if hub else []
    if not names:
        raise NotFoundError("the hub holds no task", fix="push one: sparsehub push PACKAGE HUB --version 1.0.0")
    return names
