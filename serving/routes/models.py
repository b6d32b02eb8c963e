"""GET /v1/models, /v1/models/{model}: the backbone and every task on it; OpenAI's shape, and what a task needs."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from serving.protocol.models import ModelCard, ModelList
from serving.request.context import current_request
from serving.request.service import RunningService, Service
from sparsehub.engine import TaskStatus
from sparsehub.errors import UnknownTaskError
from sparsehub.task_ref import BACKBONE, parse_model

router = APIRouter()


@router.get("/v1/models", response_model=ModelList, response_model_exclude_unset=True)
async def models(service: RunningService) -> ModelList:
    """Everything that can stand in `model` for this caller."""
    return ModelList(object="list", data=_seen(service))


@router.get("/v1/models/{model:path}", response_model=ModelCard, response_model_exclude_unset=True)
async def model(model: str, service: RunningService) -> ModelCard:
    """One of them, by its name, its version or its digest; the newest of a bare name."""
    asked = parse_model(model).task
    for card in reversed(_seen(service)):
        one = parse_model(card.id).task
        if asked == one or (asked.name == one.name and asked.matches(one.pin or "", card.digest or "")):
            return card
    raise UnknownTaskError(f"unknown task {model[:200]!r}")


def _seen(service: Service) -> list[ModelCard]:
    caller = current_request().caller
    backbone, started = service.settings.backbone, service.started
    plain = ModelCard(id=backbone, object="model", created=started, owned_by="sparsehub", parent=None)
    tasks = [
        _card(status, backbone, started)
        for status in service.engine.status()
        if caller.may_ask(status.task.name) and service.router.serves(status.task.name, status.task.digest)
    ]
    return [*([plain] if caller.may_ask(BACKBONE) else []), *tasks]


def _card(status: TaskStatus, backbone: str, created: int) -> ModelCard:
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
    return ModelCard(
        id=task.reference,
        object="model",
        created=created,
        owned_by="sparsehub",
        parent=backbone,
        version=task.version,
        digest=task.digest,
        where=status.where,
        bytes=status.nbytes,
        **known,
    )
