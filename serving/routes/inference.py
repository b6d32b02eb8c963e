"""The Open Inference Protocol, version 2 (KServe, Triton): tensors in, tensors out.

A task's inputs are its text fields, each a BYTES tensor of as many strings as there are rows. Errors have OpenAI's
shape, here too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request, Response

from serving.protocol.inference import (
    InferenceParameters,
    InferenceRequest,
    InferenceResponse,
    InputTensor,
    ModelMetadata,
    ModelReady,
    OutputTensor,
    ServerLive,
    ServerMetadata,
    ServerReady,
    TensorMetadata,
    floats,
    json_strings,
    strings,
)
from serving.request.body import BodyRoute
from serving.request.results import results
from serving.request.service import RunningService
from serving.routes.classify import tagged_words
from sparsehub import __version__
from sparsehub.engine import PendingRequest, TaskInfo
from sparsehub.errors import RequestError, SparsehubError
from sparsehub.package.task_spec import EMBEDDING, MULTI_LABEL, REGRESSION, TOKEN_CLASSIFICATION

router = APIRouter(prefix="/v2", route_class=BodyRoute)
TEXT = "input"  # the only field of the plain backbone, and of an embedding
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
    """200 once the task's package was read and proved, which asking for it does."""
    info = await service.info(_reference(task, version))
    return ModelReady(name=info.name, ready=True)


@router.get("/models/{task}", response_model=ModelMetadata)
@router.get("/models/{task}/versions/{version}", response_model=ModelMetadata)
async def metadata(service: RunningService, task: str, version: str | None = None) -> ModelMetadata:
    """The task's tensors; -1 is the number of rows."""
    info = await service.info(_reference(task, version))
    inputs = [TensorMetadata(name=field, datatype="BYTES", shape=[-1]) for field in _fields(info)]
    outputs = _outputs(info, service.embedding_size)
    return ModelMetadata(name=info.name, versions=[info.version], platform="sparsehub", inputs=inputs, outputs=outputs)


@router.post("/models/{task}/infer", response_model=InferenceResponse, response_model_exclude_unset=True)
@router.post(
    "/models/{task}/versions/{version}/infer", response_model=InferenceResponse, response_model_exclude_unset=True
)
async def infer(
    body: InferenceRequest, request: Request, service: RunningService, task: str, version: str | None = None
) -> InferenceResponse:
    """One row of every output for each row of the inputs. Where one fails, the request fails: tensors have no gaps."""
    reference = _reference(task, version)
    inputs = _Inputs(body)
    if service.is_backbone(reference):
        ticket: PendingRequest[Any] = await service.embed(None, _texts(body, (TEXT,))[TEXT], False)
    else:
        ticket = await service.classify(reference, inputs, False, vectors=True)
    answers = _all(await results(request, ticket.futures))
    if ticket.task is None or ticket.task.spec.kind == EMBEDDING:
        return _answer(body, reference, ticket.task, [floats("embedding", [len(answers), len(answers[0])], answers)])
    return _answer(body, reference, ticket.task, _tensors(ticket.task, inputs.rows(ticket.task), answers))


@dataclass(frozen=True)
class _Inputs:
    """Tensors, one for each field of the task."""

    body: InferenceRequest

    def rows(self, task: TaskInfo) -> list[Any]:
        """Raises `RequestError` where the tensors are not this task's."""
        columns = _texts(self.body, _fields(task))
        if task.spec.kind == EMBEDDING:
            return columns[TEXT]
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _reference(task: str, version: str | None) -> str:
    return task if version is None else f"{task}@{version}"


def _fields(info: TaskInfo) -> tuple[str, ...]:
    if info.spec.kind == EMBEDDING:
        return (TEXT,)
    return (*info.spec.text_fields, *info.spec.choice_fields)


def _texts(body: InferenceRequest, fields: tuple[str, ...]) -> dict[str, list[str]]:
    """Every field's strings; raises `RequestError` where a field is missing or they are not equally many."""
    given = {tensor.name: _strings(tensor) for tensor in body.inputs}
    if set(given) != set(fields) or len(given) != len(body.inputs):
        found = ", ".join(tensor.name for tensor in body.inputs)[:300]
        raise RequestError("the inputs are not this task's", found=found, expected=", ".join(fields))
    if len({len(column) for column in given.values()}) > 1:
        raise RequestError(
            "the inputs differ in length", found=str({name: len(column) for name, column in given.items()})
        )
    return {field: given[field] for field in fields}


def _strings(tensor: InputTensor) -> list[str]:
    data = [text for part in tensor.data for text in (part if isinstance(part, list) else [part])]
    if len(data) != math.prod(tensor.shape):
        found = f"{len(data)} strings in the shape {tensor.shape}"
        raise RequestError(f"the tensor {tensor.name[:100]} has another size than its shape", found=found)
    return data


def _all(answers: list[Any]) -> list[Any]:
    for index, answer in enumerate(answers):
        if isinstance(answer, SparsehubError):
            raise RequestError(f"row {index} failed", found=str(answer))
    return answers


def _outputs(info: TaskInfo, width: int) -> list[TensorMetadata]:
    """width: numbers of a vector."""
    if info.spec.kind == EMBEDDING:
        return [TensorMetadata(name="embedding", datatype="FP32", shape=[-1, width])]
    if info.spec.kind == REGRESSION:
        return [TensorMetadata(name="score", datatype="FP32", shape=[-1])]
    if info.spec.kind == TOKEN_CLASSIFICATION:
        return [TensorMetadata(name="words", datatype="BYTES", shape=[-1])]
    probabilities = TensorMetadata(name="probs", datatype="FP32", shape=[-1, len(info.spec.labels)])
    if info.spec.kind == MULTI_LABEL:
        return [TensorMetadata(name="labels", datatype="BYTES", shape=[-1]), probabilities]
    return [TensorMetadata(name="label", datatype="BYTES", shape=[-1]), probabilities]


def _tensors(info: TaskInfo, rows: list[dict[str, str]], answers: list[Any]) -> list[OutputTensor]:
    """Rows of words or of several labels differ in length, so each is one string of JSON."""
    if info.spec.kind == REGRESSION:
        return [floats("score", [len(answers)], [[answer.value] for answer in answers])]
    if info.spec.kind == TOKEN_CLASSIFICATION:
        return [json_strings("words", [tagged_words(row, answer) for row, answer in zip(rows, answers, strict=True)])]
    shape = [len(answers), len(answers[0].scores)]
    if info.spec.kind == MULTI_LABEL:
        given = json_strings("labels", [a.labels for a in answers])
    else:
        given = strings("label", [a.label for a in answers])
    return [given, floats("probs", shape, [a.scores for a in answers])]


def _answer(
    body: InferenceRequest, reference: str, info: TaskInfo | None, outputs: Sequence[OutputTensor]
) -> InferenceResponse:
    """What was asked for by name, or all; `parameters` says which package gave it."""
    wanted = [output.name for output in body.outputs or ()]
    known = {output.name: output for output in outputs}
    if missing := [name for name in wanted if name not in known]:
        raise RequestError("there is no such output", found=missing[0][:100], expected=", ".join(known))
    chosen = [known[name] for name in wanted] or list(outputs)
    if info is None:
        return InferenceResponse(model_name=reference, id=body.id, outputs=chosen)
    parameters = InferenceParameters(digest=info.digest)
    return InferenceResponse(
        model_name=info.name, model_version=info.version, parameters=parameters, id=body.id, outputs=chosen
    )
