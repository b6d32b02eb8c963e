"""What a request was, on the span that BentoML's OpenTelemetry middleware opened for it; free where nothing traces."""

from __future__ import annotations

from opentelemetry import trace

from serving.request.context import RequestContext


def describe(call: RequestContext) -> None:
    """Write who asked and what answered on the current span."""
    span = trace.get_current_span()
    if not span.is_recording():
        return
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
