"""OpenTelemetry attributes of a request, on the span that BentoML's middleware opened for it."""

from __future__ import annotations

from opentelemetry.trace import Span

from serving.request.context import RequestContext


def describe(span: Span, call: RequestContext) -> None:
    """Set the caller, and the task that answered, on the span of a request."""
    span.set_attributes({"sparsehub.request_id": call.id, "sparsehub.key": call.caller.name})
    if call.digest:
        span.set_attributes(
            {
                "sparsehub.task": call.task,
                "sparsehub.digest": call.digest,
                "sparsehub.items": call.items,
                "sparsehub.tokens": call.tokens,
            }
        )
