"""GET /v1/models, /v1/models/{model}: the backbone and every task on it; OpenAI's shape, and what a task needs."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from serving.auth.caller import BACKBONE
from serving.request.context import current_request
from sparsehub.engine import TaskStatus
from sparsehub.errors import UnknownTaskError
from sparsehub.task_ref import parse_model

router = APIRouter()


@router.get("/v1/models")
async def models(request: Request) -> dict[str, Any]:
    """Everything that can stand in `model` for this caller."""
    return {"object": "list", "data": _seen(request)}


@router.get("/v1/models/{model:path}")
async def model(request: Request, model: str) -> dict[str, Any]:
    """One of them, by its name, its version or its digest; the newest of a bare name."""
    asked = parse_model(model).task
    for entry in reversed(_seen(request)):
        one = parse_model(entry["id"]).task
        if asked == one or (asked.name == one.name and asked.matches(one.pin or "", entry.get("digest", ""))):
            return entry
    raise UnknownTaskError(f"unknown task {model[:200]!r}")


def _seen(request: Request) -> list[dict[str, Any]]:
    service, caller = request.app.state.service, current_request().caller
    backbone, started = service.settings.backbone, service.started
    plain = {"id": backbone, "object": "model", "created": started, "owned_by": "sparsehub", "parent": None}
    tasks = [
        _entry(status, backbone, started)
        for status in service.engine.status()
        if caller.may_ask(status.task.name) and service.router.serves(status.task.name, status.task.digest)
    ]
    return [*([plain] if caller.may_ask(BACKBONE) else []), *tasks]


def _entry(status: TaskStatus, backbone: str, created: int) -> dict[str, Any]:
    """What the task's package says is there once somebody has asked for the task: listing reads none."""
    task, info = status.task, status.info
    known: dict[str, Any] = {}
    if info is not None:
        spec = info.spec
        known = {
            "kind": spec.kind,
            "labels": list(spec.labels),
            "fields": [*spec.text_fields, *spec.choice_fields],
            "max_length": spec.max_length,
            "nnz": info.nnz,
        }
    return {
        "id": task.reference,
        "object": "model",
        "created": created,
        "owned_by": "sparsehub",
        "parent": backbone,
        "version": task.version,
        "digest": task.digest,
        "where": status.where,
        "bytes": status.nbytes,
        **known,
    }
