"""GET /v1/tasks: the state of every task: where it is, how large, who uses it."""

from __future__ import annotations

from fastapi import APIRouter

from serving.protocol.models import TaskState, TaskStateList
from serving.request.context import current_request
from serving.request.service import RunningService, Service
from sparsehub.engine import TaskStatus

router = APIRouter()


@router.get("/v1/tasks", response_model=TaskStateList, response_model_exclude_unset=True)
async def tasks(service: RunningService) -> TaskStateList:
    """Those that the caller may ask; a version that still drains is there too, and says so."""
    caller = current_request().caller
    seen = [status for status in service.engine.status() if caller.may_ask(status.task.name)]
    return TaskStateList(object="list", data=[_state(status, service) for status in seen])


def _state(status: TaskStatus, service: Service) -> TaskState:
    task, info = status.task, status.info
    return TaskState(
        id=task.reference,
        object="task",
        name=task.name,
        version=task.version,
        digest=task.digest,
        role=service.router.role(task.name, task.digest),
        where=status.where,
        pinned=status.pinned,
        bytes=status.nbytes,
        nnz=info.nnz if info is not None else None,
        kind=info.spec.kind if info is not None else None,
        references=status.references,
        why_swap=status.why_swap,
        why_unshared=status.why_unshared,
        **service.metrics.task_stats.of(task.digest),
    )
