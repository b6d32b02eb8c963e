"""What the Open Inference Protocol makes of a task's inputs and answers: tensors, named as the task's fields are.

Rows of words or of several labels differ in length, so each is one string of JSON.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from serving.protocol.inference import (
    InferenceRequest,
    InputTensor,
    OutputTensor,
    TensorMetadata,
    floats,
    json_strings,
    strings,
)
from serving.request.many_tasks import SharedInputs
from serving.routes.classify import tagged_words
from sparsehub.engine import TaskInfo
from sparsehub.errors import RequestError
from sparsehub.package.task_spec import EMBEDDING, MULTI_LABEL, REGRESSION, TOKEN_CLASSIFICATION

TEXT = "input"  # the only field of the plain backbone, and of an embedding


@dataclass(frozen=True)
class TensorInputs:
    """Tensors of a request for one task: one for each of its fields."""

    body: InferenceRequest

    def rows(self, task: TaskInfo) -> list[Any]:
        """Raises `RequestError` where the tensors are not this task's."""
        return rows_of(columns_of(self.body, fields_of(task)))


@dataclass(frozen=True)
class SharedTensors(SharedInputs):
    """Tensors of a request for several tasks. A task that reads one text also takes it by the name `input`, since the
    tasks may call it differently."""

    body: InferenceRequest

    def rows(self, task: TaskInfo | None) -> list[Any]:
        """Raises `RequestError` where the tensors are not this task's."""
        fields = fields_of(task)
        by_any_name = len(fields) == 1 and [tensor.name for tensor in self.body.inputs] == [TEXT]
        return rows_of(columns_of(self.body, (TEXT,) if by_any_name else fields))

    def embeds(self, task: TaskInfo | None) -> bool:
        """Of tasks that give vectors, and of the plain backbone."""
        return task is None or task.spec.kind == EMBEDDING

    @property
    def most_rows(self) -> int:
        """Rows of the longest tensor."""
        return max(len(_strings(tensor)) for tensor in self.body.inputs)


def fields_of(info: TaskInfo | None) -> tuple[str, ...]:
    """The tensors that a task, or the plain backbone, reads."""
    if info is None or info.spec.kind == EMBEDDING:
        return (TEXT,)
    return (*info.spec.text_fields, *info.spec.choice_fields)


def rows_of(columns: dict[str, list[str]]) -> list[Any]:
    """Texts where there is one column, else objects with the names of the columns."""
    if len(columns) == 1:
        return next(iter(columns.values()))
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def columns_of(body: InferenceRequest, fields: tuple[str, ...]) -> dict[str, list[str]]:
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


def inputs_metadata(fields: Sequence[str]) -> list[TensorMetadata]:
    """The tensors of these fields; -1 is the number of rows."""
    return [TensorMetadata(name=field, datatype="BYTES", shape=[-1]) for field in fields]


def outputs_metadata(info: TaskInfo, width: int) -> list[TensorMetadata]:
    """The tensors that a task gives. width: numbers of a vector."""
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


def outputs_of(info: TaskInfo | None, rows: Sequence[Any], answers: Sequence[Any]) -> list[OutputTensor]:
    """The tensors that these answers are. info: None for the plain backbone; rows: what was answered."""
    if info is None or info.spec.kind == EMBEDDING:
        return [floats("embedding", [len(answers), len(answers[0])], answers)]
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


def chosen(wanted: Sequence[str], outputs: Sequence[OutputTensor]) -> list[OutputTensor]:
    """Those that are wanted, or all where none is named. Raises `RequestError` for one that there is not, and for one
    that is wanted twice: a short request would have a long answer."""
    known = {output.name: output for output in outputs}
    if missing := [name for name in wanted if name not in known]:
        raise RequestError("there is no such output", found=missing[0][:100], expected=", ".join(known)[:1000])
    if len(set(wanted)) < len(wanted):
        raise RequestError("an output is wanted twice", found=f"{len(wanted)} outputs", expected="each once")
    return [known[name] for name in wanted] or list(outputs)
