"""The Open Inference Protocol's own schema of what a server answers, for tests.

After specification/protocol/inference_rest.md and open_inference_rest.yaml of kserve/open-inference-protocol
(Apache-2.0).
"""

from __future__ import annotations

import math
from typing import Any

import jsonschema

_TEXT: dict[str, Any] = {"type": "string"}
_SHAPE = {"type": "array", "items": {"type": "integer"}}
_PARAMETERS = {"type": "object", "additionalProperties": {"type": ["string", "number", "boolean"]}}
_OUTPUT = {
    "type": "object",
    "properties": {
        "name": _TEXT,
        "shape": _SHAPE,
        "datatype": {"enum": ["BYTES", "FP32"]},  # of those that there are
        "parameters": _PARAMETERS,
        "data": {"type": "array", "items": {"type": ["number", "string", "boolean"]}},
    },
    "required": ["name", "shape", "datatype", "data"],
    "additionalProperties": False,
}
_RESPONSE = {
    "type": "object",
    "properties": {
        "model_name": _TEXT,
        "model_version": _TEXT,
        "id": _TEXT,
        "parameters": _PARAMETERS,
        "outputs": {"type": "array", "items": _OUTPUT},
    },
    "required": ["model_name", "outputs"],
    "additionalProperties": False,
}
_TENSOR = {
    "type": "object",
    "properties": {"name": _TEXT, "datatype": _TEXT, "shape": _SHAPE},
    "required": ["name", "datatype", "shape"],
    "additionalProperties": False,
}
_METADATA = {
    "type": "object",
    "properties": {
        "name": _TEXT,
        "versions": {"type": "array", "items": _TEXT},
        "platform": _TEXT,
        "inputs": {"type": "array", "items": _TENSOR},
        "outputs": {"type": "array", "items": _TENSOR},
    },
    "required": ["name", "platform"],
    "additionalProperties": False,
}


def inferred(body: Any) -> dict[str, dict[str, Any]]:
    """The outputs of a response by name, once it is what the protocol says: shapes fit, and names are distinct."""
    jsonschema.validate(body, _RESPONSE)
    outputs = {output["name"]: output for output in body["outputs"]}
    assert len(outputs) == len(body["outputs"])
    assert all(len(output["data"]) == math.prod(output["shape"]) for output in body["outputs"])
    return outputs


def described(body: Any) -> dict[str, Any]:
    """A model's metadata, once it is what the protocol says."""
    jsonschema.validate(body, _METADATA)
    return dict(body)
