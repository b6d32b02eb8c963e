"""What a request was, on the span that BentoML's OpenTelemetry middleware opened for it."""

from __future__ import annotations

from opentelemetry.trace import Span

from serving.request.context import RequestContext


def describe(span: Span, call: RequestContext) -> None:
    """Write who asked and what answered on the span of a request."""
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
