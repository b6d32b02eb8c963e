"""What an endpoint tells Prometheus of each key. A label is the name of a key in the key file, never what is sent."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram

from serving.auth import ANONYMOUS
from sparsehub.engine import BatchReport

WAITS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)


class KeyMetrics:
    """Counters by key; a part of `Metrics`."""

    def __init__(self, registry: CollectorRegistry):
        self._requests = Counter(
            "sparsehub_key_requests", "HTTP requests, by key and status", ["key", "status"], registry=registry
        )
        self._seconds = Histogram(
            "sparsehub_key_request_seconds", "What callers waited, by key", ["key"], buckets=WAITS, registry=registry
        )
        self._rows = Counter("sparsehub_key_rows", "Rows run, by key", ["key"], registry=registry)
        self._tokens = Counter(
            "sparsehub_key_tokens", "Tokens run, without padding, by key", ["key"], registry=registry
        )
        self._queued = Counter(
            "sparsehub_key_queue_seconds", "What rows waited, all rows together, by key", ["key"], registry=registry
        )

    def request(self, key: str, status: int, seconds: float) -> None:
        """Count one HTTP request."""
        self._requests.labels(key, str(status)).inc()
        self._seconds.labels(key).observe(seconds)

    def observe(self, report: BatchReport) -> None:
        """Count one batch."""
        for share in report.tenants:
            key = share.name or ANONYMOUS.name
            self._rows.labels(key).inc(share.rows)
            self._tokens.labels(key).inc(share.tokens)
            self._queued.labels(key).inc(max(0.0, share.queued))
