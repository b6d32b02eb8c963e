"""Tensors of the Open Inference Protocol, as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class _Loose(BaseModel):
    """The protocol lets clients send parameters that a server does not know."""

    model_config = ConfigDict(extra="ignore")


class InputTensor(_Loose):
    """data: flat, or one list for each row."""

    name: str = Field(max_length=300)
    shape: list[int] = Field(min_length=1, max_length=4)
    datatype: Literal["BYTES"]
    data: list[str | list[str]]


class OutputRequest(_Loose):
    name: str = Field(max_length=300)


class InferBody(_Loose):
    """outputs: those that are wanted; all where it says none."""

    inputs: list[InputTensor] = Field(min_length=1, max_length=64)
    outputs: list[OutputRequest] | None = None
    id: str | None = Field(None, max_length=300)


def strings(name: str, data: Sequence[Any]) -> dict[str, Any]:
    return {"name": name, "datatype": "BYTES", "shape": [len(data)], "data": list(data)}


def json_strings(name: str, data: Sequence[Any]) -> dict[str, Any]:
    return strings(name, [json.dumps(item, ensure_ascii=False) for item in data])


def floats(name: str, shape: list[int], rows: Sequence[Sequence[float]]) -> dict[str, Any]:
    """data: flat, row by row."""
    return {"name": name, "datatype": "FP32", "shape": shape, "data": [value for row in rows for value in row]}
