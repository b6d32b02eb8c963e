"""The Open Inference Protocol, version 2 (KServe, Triton): tensors in, tensors out, of one task or of several.

A task's inputs are its text fields, each a BYTES tensor of as many strings as there are rows. Several tasks stand in
the path in the place of one: `/v2/models/topic,urgency/infer`, or a pattern. Errors have OpenAI's shape, here too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request, Response

from serving.protocol.errors import error_detail, status_of
from serving.protocol.inference import (
    InferenceParameters,
    InferenceRequest,
    InferenceResponse,
    ModelMetadata,
    ModelReady,
    OutputTensor,
    ServerLive,
    ServerMetadata,
    ServerReady,
    TensorMetadata,
    TensorParameters,
    strings,
)
from serving.request.body import BodyRoute
from serving.request.many_tasks import ask_several
from serving.request.outcomes import Outcome
from serving.request.results import first_failure, results
from serving.request.service import RunningService, Service
from serving.request.task_lists import infos, listed_in_path
from serving.routes.tensors import (
    TEXT,
    SharedTensors,
    TensorInputs,
    chosen,
    columns_of,
    fields_of,
    inputs_metadata,
    outputs_metadata,
    outputs_of,
)
from sparsehub import __version__
from sparsehub.engine import PendingRequest, TaskInfo
from sparsehub.errors import RequestError
from sparsehub.task_ref import is_pattern

router = APIRouter(prefix="/v2", route_class=BodyRoute)
ERROR = "error"  # the output of a task that failed among others
UNREADY: dict[str, Any] = {"model": ServerReady, "description": "The engine takes no work"}


@router.get("", response_model=ServerMetadata)
async def server() -> ServerMetadata:
    """What this is."""
    return ServerMetadata(name="sparsehub", version=__version__, extensions=[])


@router.get("/health/live", response_model=ServerLive)
async def live() -> ServerLive:
    """The process answers."""
    return ServerLive(live=True)


@router.get("/health/ready", response_model=ServerReady, responses={503: UNREADY})
async def ready(service: RunningService, response: Response) -> ServerReady:
    """200 while the engine takes work, 503 otherwise."""
    healthy = service.engine.healthy
    response.status_code = 200 if healthy else 503
    return ServerReady(ready=healthy)


@router.get("/models/{task}/ready", response_model=ModelReady)
@router.get("/models/{task}/versions/{version}/ready", response_model=ModelReady)
async def model_ready(service: RunningService, task: str, version: str | None = None) -> ModelReady:
    """200 once the task's package was read and proved, which asking for it does; of several, once all were."""
    if _names_several(task):
        await infos(service, listed_in_path(service, task, version))
        return ModelReady(name=task, ready=True)
    info = await service.info(_reference(task, version))
    return ModelReady(name=info.name, ready=True)


@router.get("/models/{task}", response_model=ModelMetadata)
@router.get("/models/{task}/versions/{version}", response_model=ModelMetadata)
async def metadata(service: RunningService, task: str, version: str | None = None) -> ModelMetadata:
    """The tensors of a task, or of several; -1 is the number of rows."""
    if _names_several(task):
        return await _metadata_of_several(service, task, listed_in_path(service, task, version))
    info = await service.info(_reference(task, version))
    outputs = outputs_metadata(info, service.embedding_size)
    return ModelMetadata(
        name=info.name,
        versions=[info.version],
        platform="sparsehub",
        inputs=inputs_metadata(fields_of(info)),
        outputs=outputs,
    )


@router.post("/models/{task}/infer", response_model=InferenceResponse, response_model_exclude_unset=True)
@router.post(
    "/models/{task}/versions/{version}/infer", response_model=InferenceResponse, response_model_exclude_unset=True
)
async def infer(
    body: InferenceRequest, request: Request, service: RunningService, task: str, version: str | None = None
) -> InferenceResponse:
    """One row of every output for each row of the inputs. Where one fails, its task fails: tensors have no gaps."""
    if _names_several(task):
        return await _infer_several(body, request, service, task, listed_in_path(service, task, version))
    reference, inputs = _reference(task, version), TensorInputs(body)
    if service.is_backbone(reference):
        ticket: PendingRequest[Any] = await service.embed(None, columns_of(body, (TEXT,))[TEXT], False)
    else:
        ticket = await service.classify(reference, inputs, False, vectors=True)
    answers = await results(request, ticket.futures)
    if (failure := first_failure(answers)) is not None:
        raise failure
    rows = [] if ticket.task is None else inputs.rows(ticket.task)
    outputs = chosen(_wanted(body), outputs_of(ticket.task, rows, answers))
    if ticket.task is None:
        return InferenceResponse(model_name=reference, id=body.id, outputs=outputs)
    return _answer(body, ticket.task, outputs)


async def _infer_several(
    body: InferenceRequest, request: Request, service: Service, path: str, listed: Sequence[str]
) -> InferenceResponse:
    """The outputs of each task, with its name before theirs; of one that failed, why."""
    inputs = SharedTensors(body)
    asked = [(name, inputs) for name in listed]
    found = await ask_several(service, request, path, asked, inputs.most_rows, False, whole=True)
    outputs = [output for outcome in found.tasks for output in _outputs(outcome, inputs)]
    failed = [output for output in outputs if output.name.endswith(f"/{ERROR}")]
    wanted = [name for name in _wanted(body) if not any(name.startswith(_prefix(output)) for output in failed)]
    if _wanted(body):  # what failed is never left out, whether anybody named it or not
        outputs = [*(chosen(wanted, outputs) if wanted else ()), *failed]
    given: dict[str, Any] = {} if body.id is None else {"id": body.id}
    return InferenceResponse(model_name=path, **given, outputs=outputs)


def _outputs(outcome: Outcome, inputs: SharedTensors) -> list[OutputTensor]:
    """One task's outputs in a response of several."""
    if (error := outcome.error) is not None:
        found = [strings(ERROR, [error_detail(error).message])]
        about = TensorParameters(model=outcome.model, status=status_of(error), code=type(error).__name__)
    else:
        assert outcome.pending is not None  # it has answers
        task = outcome.pending.task
        found = outputs_of(task, inputs.rows(task), outcome.answers)
        served: dict[str, Any] = {} if task is None else {"version": task.version, "digest": task.digest}
        about = TensorParameters(model=outcome.model, **served)
    return [output.renamed(f"{outcome.model}/{output.name}", about) for output in found]


def _prefix(output: OutputTensor) -> str:
    return output.name.removesuffix(ERROR)


async def _metadata_of_several(service: Service, path: str, listed: Sequence[str]) -> ModelMetadata:
    """Raises `RequestError` for tasks that no request can ask together: they read other fields."""
    found = await infos(service, listed)
    read = {fields_of(info) for info in found}
    if len(read) > 1 and any(len(fields) > 1 for fields in read):
        shown = "; ".join(sorted(", ".join(fields) for fields in read))[:300]
        raise RequestError("the tasks read other fields", found=shown, fix="ask those that read the same together")
    outputs = [
        TensorMetadata(name=f"{name}/{output.name}", datatype=output.datatype, shape=output.shape)
        for name, info in zip(listed, found, strict=True)
        for output in outputs_metadata(info, service.embedding_size)
    ]
    inputs = inputs_metadata(next(iter(read)) if len(read) == 1 else (TEXT,))
    return ModelMetadata(name=path, versions=[], platform="sparsehub", inputs=inputs, outputs=outputs)


def _names_several(task: str) -> bool:
    """Whether a path names several tasks in the place of one."""
    return "," in task or is_pattern(task)


def _reference(task: str, version: str | None) -> str:
    return task if version is None else f"{task}@{version}"


def _wanted(body: InferenceRequest) -> list[str]:
    return [output.name for output in body.outputs or ()]


def _answer(body: InferenceRequest, info: TaskInfo, outputs: Sequence[OutputTensor]) -> InferenceResponse:
    """`parameters` says which package gave it."""
    return InferenceResponse(
        model_name=info.name,
        model_version=info.version,
        parameters=InferenceParameters(digest=info.digest),
        id=body.id,
        outputs=list(outputs),
    )
