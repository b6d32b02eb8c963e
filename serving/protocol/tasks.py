"""The shapes of requests and answers: vLLM's for classify and score, OpenAI's for embeddings, models and errors."""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

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

if TYPE_CHECKING:
    from sparsehub.engine import PendingRequest


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


class Body(BaseModel):
    """What every request has. truncate_prompt_tokens -1: cut inputs at the task's limit instead of refusing them."""

    model_config = ConfigDict(extra="forbid")

    model: str = Field(min_length=1, max_length=300)
    truncate_prompt_tokens: Literal[-1] | None = None

    @property
    def truncate(self) -> bool:
        return self.truncate_prompt_tokens is not None


class ClassifyBody(Body):
    """input: one item or a list; an item is a string, or an object with the task's fields, or a pair of strings."""

    input: Any


class ScoreBody(Body):
    """Either `input`, as for classify, or text_1 and text_2; a single text_1 is paired with every text_2."""

    input: Any = None
    text_1: str | list[str] | None = None
    text_2: str | list[str] | None = None


class RerankDocument(BaseModel):
    """A text as an object, as Cohere's clients send it."""

    model_config = ConfigDict(extra="forbid")

    text: str


class RerankBody(Body):
    """top_n: of the best, null for all."""

    query: str
    documents: list[str | RerankDocument] = Field(min_length=1)
    top_n: int | None = Field(None, ge=1)
    return_documents: bool = True


class EmbeddingsBody(Body):
    input: str | list[str]
    encoding_format: Literal["float", "base64"] = "float"


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def envelope(kind: str, body: Body, ticket: PendingRequest[Any], data: list[dict[str, Any]]) -> dict[str, Any]:
    """What surrounds every list of answers. task, version and digest say exactly which package gave them."""
    task = ticket.task
    served = {"task": task.reference, "version": task.version, "digest": task.digest} if task else {}
    return {
        "id": f"{kind}-{uuid.uuid4().hex}",
        "object": "list",
        "created": int(time.time()),
        "model": body.model,
        **served,
        "data": data,
        "usage": {"prompt_tokens": ticket.tokens, "completion_tokens": 0, "total_tokens": ticket.tokens},
    }


def error_body(message: str, status: int, *, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """An error in OpenAI's shape. What it quotes of a request may hold half of a surrogate pair: it goes escaped."""
    message, param = _encodable(message), _encodable(param) if param else None
    kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def _encodable(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()


def status_of(error: BaseException) -> int:
    """The HTTP status of one of our errors."""
    return next((status for kind, status in STATUS.items() if isinstance(error, kind)), 500)
