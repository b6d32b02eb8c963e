"""Errors in OpenAI's shape, and the HTTP status of each of our exceptions."""

from __future__ import annotations

from typing import Any

from serving.protocol.base import ApiModel
from sparsehub.errors import (
    BackboneError,
    CancelledError,
    ConflictError,
    EngineError,
    ForbiddenError,
    FormatError,
    HubError,
    NotFoundError,
    QueueFullError,
    RateLimitError,
    RequestError,
    SparsehubError,
    TrustError,
    UnauthenticatedError,
    UnhealthyError,
    UnknownTaskError,
    UsageError,
)


class BodyTooLargeError(RequestError):
    """More bytes than the endpoint reads."""


class BodyTooSlowError(RequestError):
    """The bytes did not come in time."""


STATUS: dict[type[SparsehubError], int] = {
    UnauthenticatedError: 401,
    ForbiddenError: 403,
    TrustError: 403,
    BodyTooSlowError: 408,
    BodyTooLargeError: 413,
    RateLimitError: 429,
    RequestError: 400,
    UsageError: 400,
    UnknownTaskError: 404,
    NotFoundError: 404,
    ConflictError: 409,
    QueueFullError: 429,
    UnhealthyError: 503,
    CancelledError: 504,
    EngineError: 503,  # a task that cannot be loaded, or has no room: another replica may do better
    HubError: 503,  # nor one whose hub is away, or brings other bytes than it promised
    FormatError: 503,
    BackboneError: 503,
}
_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class ErrorDetail(ApiModel):
    """What went wrong."""

    message: str
    """What was found, what was expected, what to do."""
    type: str
    """The kind of error, as OpenAI's clients know them."""
    param: str | None
    """The field that is wrong, where one is."""
    code: str | None
    """The class of the error."""


class ErrorResponse(ApiModel):
    """The body of every error of every route."""

    error: ErrorDetail


class FailedItem(ApiModel):
    """What stands in a list of answers for an input that failed alone."""

    index: int
    """Of the input in the request."""
    error: ErrorDetail


def error_detail(error: SparsehubError) -> ErrorDetail:
    """One of our errors, as it stands in the place of an answer."""
    return _detail(str(error), status_of(error), code=type(error).__name__)


def failed_item(index: int, error: SparsehubError) -> FailedItem:
    """The item of an input's own error; the other inputs have their answers."""
    return FailedItem(index=index, error=_detail(str(error), status_of(error)))


def error_body(message: str, status: int, *, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """An `ErrorResponse` as JSON's types. status: of HTTP, which decides the error's type."""
    return ErrorResponse(error=_detail(message, status, param, code)).model_dump()


def status_of(error: BaseException) -> int:
    """The HTTP status of one of our errors."""
    return next((status for kind, status in STATUS.items() if isinstance(error, kind)), 500)


def _detail(message: str, status: int, param: str | None = None, code: str | None = None) -> ErrorDetail:
    """What it quotes of a request may hold half of a surrogate pair: it goes escaped."""
    kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return ErrorDetail(message=_encodable(message), type=kind, param=_encodable(param) if param else None, code=code)


def _encodable(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()
