"""Error responses in OpenAI's shape, made from our exceptions."""

from __future__ import annotations

import math

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from serving.protocol.errors import error_body, status_of
from serving.protocol.request_model import FieldError
from serving.request.results import CLIENT_LEFT, AnswerTimeoutError, ClientLeft
from sparsehub.errors import QueueFullError, RateLimitError, SparsehubError, UnauthenticatedError

AGAIN = "5"  # seconds; what failed for a hub or a disk is tried anew by the next request


def failure(error: SparsehubError) -> Response:
    """The response to a request that failed."""
    if isinstance(error, ClientLeft):
        return Response(status_code=CLIENT_LEFT)
    status = status_of(error)
    param = error.param if isinstance(error, FieldError) else None
    body = error_body(str(error), status, param=param, code=type(error).__name__)
    return JSONResponse(body, status, _headers(error, status))


def _headers(error: SparsehubError, status: int) -> dict[str, str] | None:
    if isinstance(error, QueueFullError | RateLimitError):
        return {"Retry-After": str(max(1, math.ceil(error.retry_after)))}
    if isinstance(error, UnauthenticatedError):
        return {"WWW-Authenticate": "Bearer"}
    if isinstance(error, AnswerTimeoutError):
        return {"X-Should-Retry": "false"}  # OpenAI's clients would send a request with a 5xx twice more
    return {"Retry-After": AGAIN} if status == 503 else None


def malformed(request: Request, error: RequestValidationError) -> Response:
    """The answer to a body that its route cannot read, with the reason why where it is not JSON at all."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"] if part != "body")
    elsewhere = ", not from the address's query"
    if not place and first["type"] == "missing":
        hint = elsewhere if request.query_params else ""
        return _malformed(f"the request has no body; fields are read from a JSON body{hint}")
    if unread := _not_json(request):
        return _malformed(unread)
    hint = f" (it is read from a JSON body{elsewhere})" if place in request.query_params else ""
    problem = f"{place}: {first['msg']}{hint}" if place else first["msg"]
    return _malformed(f"the body is malformed: {problem}", place or None)


def http_failure(request: Request, error: HTTPException) -> Response:
    """The answer where no route, or none of this method, was found, or where a body's bytes are no text."""
    if error.status_code == 400:
        return _malformed(_not_json(request) or f"the body is malformed: {error.detail}")
    message = f"{request.method} {request.url.path}: {error.detail}"
    return JSONResponse(error_body(message, error.status_code), error.status_code, error.headers)


def _malformed(message: str, place: str | None = None) -> Response:
    return JSONResponse(error_body(message, 400, param=place, code="malformed_body"), 400)


def _not_json(request: Request) -> str:
    """What its headers say that the body is instead of JSON; empty where they say JSON."""
    coded = request.headers.get("content-encoding", "identity")
    if coded != "identity":
        return f"the body is compressed; found: Content-Encoding: {coded[:100]}; to do: send it as it is"
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json" or kind.endswith("+json"):
        return ""
    found = f"Content-Type: {kind[:100]}" if kind else "no Content-Type"
    return f"the body was not sent as JSON; found: {found}; to do: send the header Content-Type: application/json"
