"""What the endpoint's OpenAPI description says of errors: which there are, and that all of them have one shape."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel


class ErrorDetail(BaseModel):
    """type: its kind, as OpenAI's clients know them; param: the field that is wrong; code: the class of our error."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """Every error of every route."""

    error: ErrorDetail


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
    504: "The rows waited too long",
}
ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": text} for status, text in _ERRORS.items()
}


def describe_errors(app: FastAPI) -> None:
    """Have the app describe itself without FastAPI's own shape for a malformed body, which it never sends."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            found = get_openapi(title=app.title, version=app.version, routes=app.routes)
            for verbs in found["paths"].values():
                for operation in verbs.values():
                    operation["responses"].pop("422", None)
            for unused in ("HTTPValidationError", "ValidationError"):
                found["components"]["schemas"].pop(unused, None)
            app.openapi_schema = found
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
