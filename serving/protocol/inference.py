"""Requests and responses of the Open Inference Protocol, version 2 (KServe, Triton): tensors as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Literal

from pydantic import ConfigDict, Field, SerializeAsAny, SkipValidation

from serving.protocol.base import ApiModel
from serving.protocol.request_model import ListOf

# requests


class InferenceModel(ApiModel):
    """The base of the protocol's requests: clients may send parameters that a server does not know."""

    model_config = ConfigDict(extra="ignore")


class InputTensor(InferenceModel):
    """One text field of the task, for all rows."""

    name: str = Field(max_length=300)
    shape: ListOf[int] = Field(min_length=1, max_length=4)
    datatype: Literal["BYTES"]
    data: ListOf[str | ListOf[str]]
    """Flat, or one list for each row."""


class RequestedOutput(InferenceModel):
    """An output that is wanted."""

    name: str = Field(max_length=300)


class InferenceRequest(InferenceModel):
    """Rows, field by field."""

    inputs: ListOf[InputTensor] = Field(min_length=1, max_length=64)
    outputs: ListOf[RequestedOutput] | None = None
    """Those that are wanted; all where none is named."""
    id: str | None = Field(None, max_length=300)


# responses


class ServerMetadata(ApiModel):
    """What this server is."""

    name: str
    version: str
    extensions: list[str]


class ServerLive(ApiModel):
    """The process answers."""

    live: bool


class ServerReady(ApiModel):
    """Whether the engine takes work."""

    ready: bool


class ModelReady(ApiModel):
    """Whether a task can be asked."""

    name: str
    ready: bool


class TensorMetadata(ApiModel):
    """One tensor that a task takes or gives."""

    name: str
    datatype: Literal["BYTES", "FP32"]
    shape: list[int]
    """-1 is the number of rows."""


class ModelMetadata(ApiModel):
    """A task's tensors."""

    name: str
    versions: list[str]
    platform: Literal["sparsehub"]
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class TensorParameters(ApiModel):
    """Whose output it is, where several tasks are asked."""

    model: str
    """The task, as the path said it; with a pattern its name."""
    version: str | None = None
    """Absent, like the digest, where the plain backbone answers or the task failed."""
    digest: str | None = None
    status: int | None = None
    """Of HTTP, as if the task had been asked alone; absent, like the code, where it has answered."""
    code: str | None = None
    """The class of the error."""


class OutputTensor(ApiModel):
    """One output, for all rows."""

    name: str
    datatype: Literal["BYTES", "FP32"]
    shape: list[int]
    # Not validated: it is the engine's own, and as many numbers as the vectors of all rows.
    data: SerializeAsAny[SkipValidation[list[str] | list[float]]]
    """Flat, row by row."""
    parameters: TensorParameters | None = None
    """Absent where one task is asked."""

    def renamed(self, name: str, parameters: TensorParameters) -> OutputTensor:
        """The same data as the output of one task among several."""
        return OutputTensor(name=name, datatype=self.datatype, shape=self.shape, data=self.data, parameters=parameters)


class InferenceParameters(ApiModel):
    """The very package that answered."""

    digest: str


class InferenceResponse(ApiModel):
    """One row of every output for each row of the inputs. Where several tasks are asked, the outputs of each, its name
    before theirs (`topic/label`); of a task that failed there is one, `topic/error`, with the reason."""

    model_name: str
    """Of the task; where several are asked, as the path said it."""
    model_version: str | None = None
    """Absent where the plain backbone answers, and where several tasks do."""
    parameters: InferenceParameters | None = None
    """As of `model_version`."""
    id: str | None = None
    """As the request said it; absent where several tasks are asked and it said none."""
    outputs: list[OutputTensor]


def strings(name: str, data: Sequence[str]) -> OutputTensor:
    return OutputTensor(name=name, datatype="BYTES", shape=[len(data)], data=list(data))


def json_strings(name: str, data: Sequence[object]) -> OutputTensor:
    """data: of JSON's types; each becomes one string."""
    return strings(name, [json.dumps(item, ensure_ascii=False) for item in data])


def floats(name: str, shape: list[int], rows: Sequence[Sequence[float]]) -> OutputTensor:
    return OutputTensor(name=name, datatype="FP32", shape=shape, data=[value for row in rows for value in row])
