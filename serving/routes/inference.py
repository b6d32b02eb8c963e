"""The Open Inference Protocol, version 2 (KServe, Triton): tensors in, tensors out.

A task's inputs are its text fields, each a BYTES tensor of as many strings as there are rows. Errors have OpenAI's
shape, here too.
"""

from __future__ import annotations

import math
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from serving.protocol.inference import InferBody, InputTensor, floats, json_strings, strings
from serving.request.results import results
from serving.routes.classify import tagged_words
from sparsehub import __version__
from sparsehub.engine import TaskInfo
from sparsehub.errors import RequestError, SparsehubError
from sparsehub.package.manifest import REGRESSION, TOKEN_CLASSIFICATION

router = APIRouter(prefix="/v2")
TEXT = "input"  # the plain backbone's only field


@router.get("")
async def server() -> dict[str, Any]:
    """What this is."""
    return {"name": "sparsehub", "version": __version__, "extensions": []}


@router.get("/health/live")
async def live() -> dict[str, bool]:
    """The process answers."""
    return {"live": True}


@router.get("/health/ready", response_model=dict[str, bool])
async def ready(request: Request) -> JSONResponse:
    """200 while the engine takes work, 503 otherwise."""
    healthy = request.app.state.service.engine.healthy
    return JSONResponse({"ready": healthy}, 200 if healthy else 503)


@router.get("/models/{task}/ready")
@router.get("/models/{task}/versions/{version}/ready")
async def model_ready(request: Request, task: str, version: str | None = None) -> dict[str, Any]:
    """200 once the task's package was read and proved, which asking for it does."""
    info = await request.app.state.service.info(_reference(task, version))
    return {"name": info.name, "ready": True}


@router.get("/models/{task}")
@router.get("/models/{task}/versions/{version}")
async def metadata(request: Request, task: str, version: str | None = None) -> dict[str, Any]:
    """The task's tensors; -1 is the number of rows."""
    info = await request.app.state.service.info(_reference(task, version))
    inputs = [{"name": field, "datatype": "BYTES", "shape": [-1]} for field in _fields(info)]
    return {
        "name": info.name,
        "versions": [info.version],
        "platform": "sparsehub",
        "inputs": inputs,
        "outputs": _outputs(info),
    }


@router.post("/models/{task}/infer")
@router.post("/models/{task}/versions/{version}/infer")
async def infer(body: InferBody, request: Request, task: str, version: str | None = None) -> dict[str, Any]:
    """One row of every output for each row of the inputs. Where one fails, the request fails: tensors have no gaps."""
    service, reference = request.app.state.service, _reference(task, version)
    if service.is_backbone(reference):
        ticket = await service.submit(service.engine.embed, None, _texts(body, (TEXT,))[TEXT], False)
        vectors = _all(await results(request, ticket.futures))
        return _answer(body, reference, None, [floats("embedding", [len(vectors), len(vectors[0])], vectors)])
    columns = _texts(body, _fields(await service.info(reference)))
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    ticket = await service.submit(service.engine.classify, reference, rows, False)
    answers = _all(await results(request, ticket.futures))
    return _answer(body, reference, ticket.task, _tensors(ticket.task, rows, answers))


def _reference(task: str, version: str | None) -> str:
    return task if version is None else f"{task}@{version}"


def _fields(info: TaskInfo) -> tuple[str, ...]:
    return (*info.spec.text_fields, *info.spec.choice_fields)


def _texts(body: InferBody, fields: tuple[str, ...]) -> dict[str, list[str]]:
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


def _outputs(info: TaskInfo) -> list[dict[str, Any]]:
    if info.spec.kind == REGRESSION:
        return [{"name": "score", "datatype": "FP32", "shape": [-1]}]
    if info.spec.kind == TOKEN_CLASSIFICATION:
        return [{"name": "words", "datatype": "BYTES", "shape": [-1]}]
    probabilities = {"name": "probs", "datatype": "FP32", "shape": [-1, len(info.spec.labels)]}
    return [{"name": "label", "datatype": "BYTES", "shape": [-1]}, probabilities]


def _tensors(info: TaskInfo, rows: list[dict[str, str]], answers: list[Any]) -> list[dict[str, Any]]:
    """The rows of words differ in length, so each is one string of JSON."""
    if info.spec.kind == REGRESSION:
        return [floats("score", [len(answers)], [[answer.value] for answer in answers])]
    if info.spec.kind == TOKEN_CLASSIFICATION:
        return [json_strings("words", [tagged_words(row, answer) for row, answer in zip(rows, answers, strict=True)])]
    shape = [len(answers), len(answers[0].scores)]
    return [strings("label", [a.label for a in answers]), floats("probs", shape, [a.scores for a in answers])]


def _answer(body: InferBody, reference: str, info: TaskInfo | None, outputs: list[dict[str, Any]]) -> dict[str, Any]:
    """What was asked for by name, or all; `parameters` says which package gave it."""
    wanted = [output.name for output in body.outputs or ()]
    known = {output["name"]: output for output in outputs}
    if missing := [name for name in wanted if name not in known]:
        raise RequestError("there is no such output", found=missing[0][:100], expected=", ".join(known))
    served = {"model_version": info.version, "parameters": {"digest": info.digest}} if info is not None else {}
    name = info.name if info is not None else reference
    return {"model_name": name, **served, "id": body.id, "outputs": [known[name] for name in wanted] or outputs}
