"""GET /v1/models: the backbone and every task on it; OpenAI's shape with what a task needs beside it."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from serving.access.caller import BACKBONE
from serving.call import current_call
from sparsehub.engine import TaskStatus

router = APIRouter()


@router.get("/v1/models")
async def models(request: Request) -> dict[str, Any]:
    """Everything that can stand in `model` for this caller."""
    service, caller = request.app.state.service, current_call().caller
    backbone = service.settings.backbone
    plain = {"id": backbone, "object": "model", "created": service.started, "owned_by": "sparsehub", "parent": None}
    seen = [
        status
        for status in service.engine.status()
        if caller.may_ask(status.task.name) and service.router.serves(status.task.name, status.task.digest)
    ]
    tasks = [_entry(status, backbone, service.started) for status in seen]
    return {"object": "list", "data": [*([plain] if caller.may_ask(BACKBONE) else []), *tasks]}


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
        "digest": task.digest,
        "where": status.where,
        "bytes": status.nbytes,
        **known,
    }
