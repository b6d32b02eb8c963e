"""/v1/admin/catalog: the catalogue's verbs, for admin keys. What they change, every replica follows.

A version is loaded here before the catalogue names it, so one that cannot be served is refused, and nothing changes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import anyio
from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from serving.catalog import Catalog, CatalogEntry, CatalogTarget, change_catalog, changes
from serving.catalog.reconciler import Reconciler
from serving.logs import log_act
from serving.request.context import current_request
from sparsehub.errors import BackboneError, EngineError, FormatError, SparsehubError, TrustError, UsageError

router = APIRouter(prefix="/v1/admin/catalog")
Edit = Callable[[Catalog], Catalog]


class CatalogAction(BaseModel):
    """revision: the catalogue's, as the admin saw it; another one by now is 409."""

    model_config = ConfigDict(extra="forbid")

    revision: int | None = None


class TaskAction(CatalogAction):
    """task: a name in the catalogue."""

    task: str = Field(min_length=1, max_length=300)


class AddTask(CatalogAction):
    """reference: what to serve; its exact version goes into the catalogue."""

    reference: str = Field(min_length=1, max_length=300)
    pinned: bool = False
    items_per_second: float | None = Field(None, gt=0, allow_inf_nan=False)
    tokens_per_second: float | None = Field(None, gt=0, allow_inf_nan=False)


class SetOptions(TaskAction):
    """What is given is changed, null takes a quota away. version: what everybody is to have at once."""

    version: str | None = Field(None, min_length=1, max_length=100)
    pinned: bool = False
    items_per_second: float | None = Field(None, gt=0, allow_inf_nan=False)
    tokens_per_second: float | None = Field(None, gt=0, allow_inf_nan=False)


class CanaryTask(CatalogAction):
    """reference: the version to try; percent: of the callers."""

    reference: str = Field(min_length=1, max_length=300)
    percent: float = Field(ge=0, le=100, allow_inf_nan=False)


@router.get("")
async def status(request: Request) -> dict[str, Any]:
    """The catalogue as this replica serves it."""
    return state(_keeper(request))


@router.post("/add")
async def add(body: AddTask, request: Request) -> dict[str, Any]:
    """Serve one more task."""
    name, target = await _sound(request, "add", body.reference)
    entry = CatalogEntry(target, None, 0.0, body.pinned, body.items_per_second, body.tokens_per_second)
    return await _act(request, "add", body, lambda catalog: changes.add(catalog, name, entry))


@router.post("/remove")
async def remove(body: TaskAction, request: Request) -> dict[str, Any]:
    """Serve a task no longer; what has begun is answered."""
    return await _act(request, "remove", body, lambda catalog: changes.remove(catalog, body.task))


@router.post("/set")
async def set_options(body: SetOptions, request: Request) -> dict[str, Any]:
    """Change a task's version, pin or quotas."""
    options = body.model_dump(exclude={"task", "version", "revision"}, exclude_unset=True)
    if body.version is None:
        return await _act(request, "set", body, lambda catalog: changes.set_options(catalog, body.task, **options))
    _, target = await _sound(request, "set", f"{body.task}@{body.version}")

    def edit(catalog: Catalog) -> Catalog:
        moved = changes.move(catalog, body.task, target)
        return changes.set_options(moved, body.task, **options) if options else moved

    return await _act(request, "set", body, edit)


@router.post("/canary")
async def canary(body: CanaryTask, request: Request) -> dict[str, Any]:
    """Let some callers have another version."""
    name, target = await _sound(request, "canary", body.reference)
    return await _act(request, "canary", body, lambda catalog: changes.canary(catalog, name, target, body.percent))


@router.post("/promote")
async def promote(body: TaskAction, request: Request) -> dict[str, Any]:
    """Let everybody have the canary's version."""
    return await _act(request, "promote", body, lambda catalog: changes.promote(catalog, body.task))


@router.post("/rollback")
async def rollback(body: TaskAction, request: Request) -> dict[str, Any]:
    """Take the canary back, or the stable version to the one before it."""
    return await _act(request, "rollback", body, lambda catalog: changes.rollback(catalog, body.task))


@router.post("/reload")
async def reload(request: Request) -> dict[str, Any]:
    """Have this replica read the catalogue now, and try again what it refused; else that happens within seconds."""
    reconciler, call = _keeper(request), current_request()
    try:
        await anyio.to_thread.run_sync(reconciler.reload)
    except SparsehubError as error:
        log_act(call, "catalog reload", "refused", error=str(error)[:500])
        raise
    log_act(call, "catalog reload", "done", revision=reconciler.revision)
    return state(reconciler)


def state(reconciler: Reconciler) -> dict[str, Any]:
    """What is served, what was refused and why, and how many versions only finish what has begun."""
    return {
        "object": "catalog",
        "where": reconciler.document.where,
        "revision": reconciler.revision,
        "tasks": {name: dataclasses.asdict(entry) for name, entry in reconciler.served.items()},
        "refused": {name: str(error) for name, error in reconciler.refused.items()},
        "error": None if reconciler.follower.error is None else str(reconciler.follower.error),
        "draining": reconciler.draining,
    }


def _keeper(request: Request) -> Reconciler:
    reconciler: Reconciler | None = request.app.state.service.reconciler
    if reconciler is None:
        raise UsageError("this endpoint follows no catalogue", fix="start it with: sparsehub serve --catalog ...")
    return reconciler


async def _sound(request: Request, act: str, reference: str) -> tuple[str, CatalogTarget]:
    """The exact version that a reference means, once this replica has loaded it; else raises `UsageError`."""
    reconciler = _keeper(request)

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


async def _act(request: Request, act: str, body: CatalogAction, edit: Edit) -> dict[str, Any]:
    """Change the catalogue, take it over here at once, and write down who did it."""
    reconciler, call = _keeper(request), current_request()
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
