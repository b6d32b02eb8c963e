"""Error responses in OpenAI's shape, made from our exceptions."""

from __future__ import annotations

import math

from fastapi import Response
from fastapi.responses import JSONResponse

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
