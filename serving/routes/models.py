"""GET /v1/models: the backbone and every task on it; OpenAI's shape with what a task needs beside it."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from sparsehub.engine.tasks import LoadedTask, reference_of

router = APIRouter()


@router.get("/v1/models")
async def models(request: Request) -> dict[str, Any]:
    """Everything that can stand in `model`."""
    service = request.app.state.service
    backbone = service.settings.backbone
    plain = {"id": backbone, "object": "model", "created": service.started, "owned_by": "sparsehub", "parent": None}
    tasks = [_entry(task, backbone, service.started) for task in service.engine.tasks.all()]
    return {"object": "list", "data": [plain, *tasks]}


def _entry(task: LoadedTask, backbone: str, created: int) -> dict[str, Any]:
    spec = task.manifest.task
    return {
        "id": reference_of(task),
        "object": "model",
        "created": created,
        "owned_by": "sparsehub",
        "parent": backbone,
        "digest": task.digest,
        "kind": spec.kind,
        "labels": list(spec.labels),
        "fields": [*spec.text_fields, *spec.choice_fields],
        "max_length": spec.max_length,
        "nnz": task.patch.nnz,
        "bytes": task.nbytes,
    }
