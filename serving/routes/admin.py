"""/v1/admin/catalog: the catalogue's verbs, for admin keys. What they change, every replica follows.

A version is loaded here before the catalogue names it, so one that cannot be served is refused, and nothing changes.
"""

from __future__ import annotations

from collections.abc import Callable

import anyio
from fastapi import APIRouter

from serving.catalog import Catalog, CatalogEntry, CatalogTarget, change_catalog, changes
from serving.catalog.reconciler import Reconciler
from serving.protocol.catalog import (
    AddTaskRequest,
    CanaryRequest,
    CatalogEntryState,
    CatalogRequest,
    CatalogState,
    CatalogTaskRequest,
    PublishedVersion,
    PublishedVersionList,
    SetOptionsRequest,
)
from serving.request.context import current_request
from serving.request.logs import log_act
from serving.request.service import RunningService, Service
from sparsehub.errors import BackboneError, EngineError, FormatError, SparsehubError, TrustError, UsageError

router = APIRouter(prefix="/v1/admin/catalog")
Edit = Callable[[Catalog], Catalog]


@router.get("", response_model=CatalogState)
async def status(service: RunningService) -> CatalogState:
    """The catalogue as this replica serves it."""
    return state(_keeper(service))


@router.get("/versions/{task}", response_model=PublishedVersionList)
async def versions(task: str, service: RunningService) -> PublishedVersionList:
    """The versions of a task that can be put into the catalogue."""
    found = await anyio.to_thread.run_sync(_keeper(service).source.versions, task)
    data = [PublishedVersion(version=entry.version, digest=entry.digest, error=entry.error) for entry in found]
    return PublishedVersionList(object="list", data=data)


@router.post("/add", response_model=CatalogState)
async def add(body: AddTaskRequest, service: RunningService) -> CatalogState:
    """Serve one more task."""
    name, target = await _sound(service, "add", body.reference)
    entry = CatalogEntry(target, None, 0.0, body.pinned, body.items_per_second, body.tokens_per_second)
    return await _act(service, "add", body, lambda catalog: changes.add(catalog, name, entry))


@router.post("/remove", response_model=CatalogState)
async def remove(body: CatalogTaskRequest, service: RunningService) -> CatalogState:
    """Serve a task no longer; what has begun is answered."""
    return await _act(service, "remove", body, lambda catalog: changes.remove(catalog, body.task))


@router.post("/set", response_model=CatalogState)
async def set_options(body: SetOptionsRequest, service: RunningService) -> CatalogState:
    """Change a task's version, pin or quotas."""
    options = body.model_dump(exclude={"task", "version", "revision"}, exclude_unset=True)
    if body.version is None:
        return await _act(service, "set", body, lambda catalog: changes.set_options(catalog, body.task, **options))
    _, target = await _sound(service, "set", f"{body.task}@{body.version}")

    def edit(catalog: Catalog) -> Catalog:
        moved = changes.move(catalog, body.task, target)
        return changes.set_options(moved, body.task, **options) if options else moved

    return await _act(service, "set", body, edit)


@router.post("/canary", response_model=CatalogState)
async def canary(body: CanaryRequest, service: RunningService) -> CatalogState:
    """Let some callers have another version."""
    name, target = await _sound(service, "canary", body.reference)
    return await _act(service, "canary", body, lambda catalog: changes.canary(catalog, name, target, body.percent))


@router.post("/promote", response_model=CatalogState)
async def promote(body: CatalogTaskRequest, service: RunningService) -> CatalogState:
    """Let everybody have the canary's version."""
    return await _act(service, "promote", body, lambda catalog: changes.promote(catalog, body.task))


@router.post("/rollback", response_model=CatalogState)
async def rollback(body: CatalogTaskRequest, service: RunningService) -> CatalogState:
    """Take the canary back, or the stable version to the one before it."""
    return await _act(service, "rollback", body, lambda catalog: changes.rollback(catalog, body.task))


@router.post("/reload", response_model=CatalogState)
async def reload(service: RunningService) -> CatalogState:
    """Have this replica read the catalogue now, and try again what it refused; else that happens within seconds."""
    reconciler, call = _keeper(service), current_request()
    try:
        await anyio.to_thread.run_sync(reconciler.reload)
    except SparsehubError as error:
        log_act(call, "catalog reload", "refused", error=str(error)[:500])
        raise
    log_act(call, "catalog reload", "done", revision=reconciler.revision)
    return state(reconciler)


def state(reconciler: Reconciler) -> CatalogState:
    """What is served, what was refused and why, and how many versions only finish what has begun."""
    entries = {name: CatalogEntryState.model_validate(entry) for name, entry in reconciler.served.items()}
    return CatalogState(
        object="catalog",
        where=reconciler.document.where,
        revision=reconciler.revision,
        tasks=entries,
        refused={name: str(error) for name, error in reconciler.refused.items()},
        error=None if reconciler.follower.error is None else str(reconciler.follower.error),
        draining=reconciler.draining,
    )


def _keeper(service: Service) -> Reconciler:
    reconciler: Reconciler | None = service.reconciler
    if reconciler is None:
        raise UsageError("this endpoint follows no catalogue", fix="start it with: sparsehub serve --catalog ...")
    return reconciler


async def _sound(service: Service, act: str, reference: str) -> tuple[str, CatalogTarget]:
    """The exact version that a reference means, once this replica has loaded it; else raises `UsageError`."""
    reconciler = _keeper(service)

    def work() -> tuple[str, CatalogTarget]:
        name, target = reconciler.source.resolve(reference)
        try:
            reconciler.prove(name, target)
        except (BackboneError, EngineError, FormatError, TrustError) as error:
            raise UsageError(f"{reference} cannot be served here", found=str(error)) from error
        return name, target

    try:
        return await anyio.to_thread.run_sync(work)
    except SparsehubError as error:
        log_act(current_request(), f"catalog {act}", "refused", reference=reference[:300], error=str(error)[:500])
        raise


async def _act(service: Service, act: str, body: CatalogRequest, edit: Edit) -> CatalogState:
    """Change the catalogue, take it over here at once, and write down who did it."""
    reconciler, call = _keeper(service), current_request()
    details = body.model_dump(exclude_none=True)

    def edited(catalog: Catalog) -> Catalog:
        changes.expect(catalog, body.revision)
        return edit(catalog)

    def work() -> int:
        revision = change_catalog(reconciler.document, edited).revision
        reconciler.follower.look()
        return revision

    try:
        revision = await anyio.to_thread.run_sync(work)
    except SparsehubError as error:
        log_act(call, f"catalog {act}", "refused", **{**details, "error": str(error)[:500]})
        raise
    log_act(call, f"catalog {act}", "done", **{**details, "revision": revision})
    return state(reconciler)
