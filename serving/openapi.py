"""What the endpoint's OpenAPI document says beside its routes' own models: the errors, and the chunks of streams."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.constants import REF_TEMPLATE
from fastapi.openapi.utils import get_openapi

from serving.protocol.base import ApiModel
from serving.protocol.errors import ErrorResponse
from serving.protocol.openai import ChatCompletionChunk, CompletionChunk

_ERRORS = {
    400: "The request does not fit: a wrong field, an empty or over-long input, nothing to change",
    401: "No key, or one that is not known here",
    403: "The key is not for this",
    404: "No such task is served here",
    408: "The request's body did not come in time",
    409: "The catalogue has changed meanwhile",
    413: "The request's body is too large",
    429: "A rate, a quota or the queue is used up; Retry-After says for how long",
    500: "An error of the server",
    503: "The task cannot be loaded now, or the engine takes no work; Retry-After says when to ask again",
    504: "The rows waited too long, or the answer took too long; X-Should-Retry is false for the second",
}
ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse, "description": text} for status, text in _ERRORS.items()
}
_CHUNKS: tuple[type[ApiModel], ...] = (CompletionChunk, ChatCompletionChunk)


def event_stream(chunk: type[ApiModel]) -> dict[str, Any]:
    """The response of a route that streams where it is asked to: server-sent events, whose data is one chunk each, an
    error that ends the stream, or `[DONE]`.

    FastAPI describes the answer that does not stream, by the route's `response_model`.
    """
    assert chunk in _CHUNKS, "the document describes it"
    held = {"anyOf": [{"$ref": _reference(chunk)}, {"$ref": _reference(ErrorResponse)}]}
    data = {"type": "string", "contentMediaType": "application/json", "contentSchema": held}
    event = {"type": "object", "properties": {"data": {"anyOf": [data, {"const": "[DONE]"}]}}, "required": ["data"]}
    return {"content": {"text/event-stream": {"itemSchema": event}}}


def _reference(model: type[ApiModel]) -> str:
    return REF_TEMPLATE.format(model=model.__name__)


def install_openapi(app: FastAPI) -> None:
    """Have the app describe itself with the chunks of its streams, and without FastAPI's own shape for a malformed
    body, which it never sends."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _as_json(content: dict[str, Any]) -> None:
    """FastAPI describes a text route's errors as text; they are JSON, as everywhere."""
    if (plain := content.get("text/plain")) == {"schema": {"$ref": _reference(ErrorResponse)}}:
        del content["text/plain"]
        content["application/json"] = plain


def _document(app: FastAPI) -> dict[str, Any]:
    document = get_openapi(title=app.title, version=app.version, routes=app.routes)
    for operation in (found for verbs in document["paths"].values() for found in verbs.values()):
        responses = operation["responses"]
        responses.pop("422", None)
        for status in _ERRORS.keys() & {int(code) for code in responses}:
            _as_json(responses[str(status)]["content"])
    schemas: dict[str, Any] = document["components"]["schemas"]
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    for chunk in _CHUNKS:
        schema = chunk.model_json_schema(ref_template=REF_TEMPLATE, mode="serialization")
        schemas |= {**schema.pop("$defs", {}), chunk.__name__: schema}
    return document
