"""An engine with its tasks, from settings: where packages come from meets what runs them."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from serving.auth import Authenticator, KeyRing
from serving.catalog import open_catalog
from serving.catalog.reconciler import Reconciler
from serving.catalog.router import Router
from serving.catalog.source import Source
from serving.catalog.storage import hub_beside
from serving.config_watch import Watcher
from serving.preflight import check_device, everything_in, needed_hub
from serving.settings import AUTO, Settings
from sparsehub.backbone import load_backbone
from sparsehub.engine import BatchObserver, Budgets, Engine, GenerationLimits, Limits, Task
from sparsehub.engine.calibrate import CALIBRATION_SECONDS
from sparsehub.engine.task_handle import UNLIMITED
from sparsehub.hub import PackageHub, open_hub
from sparsehub.hub.documents import FileDocument
from sparsehub.hub.package_loader import load_package
from sparsehub.hub.user_settings import read_policy
from sparsehub.package import MANIFEST_FILE, read_manifest
from sparsehub.settings import shown
from sparsehub.task_ref import TaskRef

log = logging.getLogger("sparsehub")
LOADERS = 4  # so that tasks that are on this machine need not wait for a hub that hangs


def start_engine(settings: Settings, observer: BatchObserver | None = None) -> Engine:
    """Load the backbone and every task, and start the model thread; raises what a user can mend."""
    began, device = time.monotonic(), device_of(settings)
    log.info("loading %s to %s, %s", settings.backbone, device, settings.dtype)
    backbone = load_backbone(settings.backbone, dtype=settings.dtype, device=device, revision=settings.revision)
    log.info("proving on small batches that tasks can be mixed")
    limits = Limits(settings.queue_rows, settings.batch_tokens, settings.batch_rows)
    engine = Engine(
        backbone,
        limits,
        observer,
        budgets=_budgets(settings),
        mode=settings.mode,
        compile_mode=settings.compile,
        weights=settings.weights,
        allow_quantised=settings.allow_quantised,
        generation=_texts(settings),
    )
    policy = _policy(settings)
    read_policy(policy)  # a policy that cannot be understood stops the endpoint here, and not its first request
    hub = open_hub(settings.hub) if settings.hub else None
    for reference in _references(settings, hub):
        task = task_of(reference, hub, policy)
        engine.register(task)
        if settings.tasks:  # what is named must be right; all of a hub is read as it is asked for
            engine.load(TaskRef(task.name, digest=task.digest))
        log.info("task %s %s", task.reference, task.digest)
    log.info("measuring what batches cost, for %.0f s at most", CALIBRATION_SECONDS)
    engine.start()
    log.info("%d tasks on %s in %.1f s", len(engine.tasks), settings.backbone, time.monotonic() - began)
    return engine


def start_catalog(settings: Settings, engine: Engine, router: Router) -> Reconciler | None:
    """What makes the engine serve the catalogue, where there is one; raises what a user can mend."""
    if settings.catalog is None:
        return None
    hub = hub_beside(settings.catalog, settings.hub, shown("hub"))
    source = Source(hub, _policy(settings))
    reconciler = Reconciler(open_catalog(settings.catalog), engine, router, source)
    reconciler.start()
    return reconciler


def start_access(settings: Settings) -> tuple[Authenticator, Watcher | None]:
    """Who may ask, and what follows the key file while the endpoint runs; raises `UsageError` for a wrong file."""
    if settings.keys is None:
        return Authenticator(everybody=settings.open), None
    access = Authenticator(KeyRing())
    follower = Watcher(FileDocument(Path(settings.keys)), access.reload)
    follower.look()
    follower.start()
    return access, follower


def task_of(reference: str, hub: PackageHub | None, policy: Path | None) -> Task:
    """The task that a package folder or a reference means; of its package no more than the manifest is read.

    policy: of `Settings`; it is read again, and must allow the package, whenever that is loaded.
    """
    exact: str | TaskRef = reference
    if (Path(reference) / MANIFEST_FILE).is_file():
        manifest = read_manifest(Path(reference))
        name, version, digest = manifest.name, manifest.version, manifest.digest
    else:
        resolved = needed_hub(reference, hub).resolve(reference)
        name, digest, exact = resolved.name, resolved.digest, resolved.reference
        version = resolved.version or digest
    return Task(name, version, digest, lambda: load_package(exact, hub, policy=read_policy(policy)))


def _policy(settings: Settings) -> Path | None:
    return Path(settings.policy) if settings.policy else None


def _texts(settings: Settings) -> GenerationLimits:
    return GenerationLimits(
        cache_tokens=settings.cache_tokens,
        batch_tokens=settings.generation_batch_tokens,
        sequences=settings.sequences,
        waiting=settings.waiting,
        new_tokens=settings.new_tokens,
    )


def _budgets(settings: Settings) -> Budgets:
    mebibyte = 1 << 20
    device = settings.device_mib * mebibyte if settings.device_mib else UNLIMITED
    states = settings.state_cache_mib * mebibyte
    return Budgets(device, settings.host_mib * mebibyte, loaders=LOADERS, state_bytes=states)


def _references(settings: Settings, hub: PackageHub | None) -> Sequence[str]:
    """What is served from the start: the tasks that are named, else all of the hub, else the backbone alone."""
    if settings.catalog or hub is None:
        return settings.tasks
    return settings.tasks or everything_in(hub)


def device_of(settings: Settings) -> str:
    """The device of an endpoint; raises `UsageError` for one that is not here."""
    if settings.device == AUTO:
        return "cuda" if torch.cuda.is_available() else "cpu"
    check_device(settings.device)
    return settings.device
