"""What an endpoint tells Prometheus."""

from __future__ import annotations

from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from sparsehub.engine import BatchReport, Engine

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Counters of one endpoint. `observe` is called by the model thread after every batch."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        self._rows = Counter(
            "sparsehub_rows", "Rows answered, by task and outcome", ["task", "outcome"], registry=registry
        )
        self._tokens = Counter("sparsehub_tokens", "Tokens run, padding included", ["task"], registry=registry)
        self._switches = Counter("sparsehub_switches", "Times the arena moved between tasks", registry=registry)
        self._batch = Histogram("sparsehub_batch_rows", "Rows of a batch", buckets=_ROWS, registry=registry)
        self._phase = Histogram(
            "sparsehub_phase_seconds", "Where a batch's time went", ["phase"], buckets=_SECONDS, registry=registry
        )
        self._requests = Counter(
            "sparsehub_requests", "HTTP requests, by route and status", ["route", "status"], registry=registry
        )
        self._waiting = _gauge("waiting_rows", "Rows in the queue", "livesum", registry)
        self._tasks = _gauge("tasks", "Tasks that are served", "livemax", registry)
        self._bytes = _gauge("task_bytes", "Memory of all patches and heads", "livemax", registry)
        self._healthy = _gauge("healthy", "1 while the engine takes work", "livemin", registry)

    def observe(self, report: BatchReport) -> None:
        """Count one batch."""
        task = report.task or "(backbone)"
        self._rows.labels(task, "ok").inc(report.rows - report.failed)
        self._rows.labels(task, "error").inc(report.failed)
        self._tokens.labels(task).inc(report.tokens)
        self._switches.inc(report.switched)
        self._batch.observe(report.rows)
        for phase in ("queued", "switch", "forward", "head"):
            self._phase.labels(phase).observe(getattr(report, phase))

    def request(self, route: str, status: int) -> None:
        """Count one HTTP request."""
        self._requests.labels(route, str(status)).inc()

    def sample(self, engine: Engine) -> None:
        """Read the gauges off the engine."""
        tasks = engine.tasks.all()
        self._waiting.set(engine.waiting)
        self._tasks.set(len(tasks))
        self._bytes.set(sum(task.nbytes for task in tasks))
        self._healthy.set(engine.healthy)

    def text(self, engine: Engine) -> str:
        """Everything, in Prometheus' text format."""
        self.sample(engine)
        return generate_latest(self.registry).decode()


def _gauge(name: str, text: str, mode: Literal["livesum", "livemax", "livemin"], registry: CollectorRegistry) -> Gauge:
    """mode: how the values of several processes become one where prometheus_client runs in many."""
    return Gauge(f"sparsehub_{name}", text, multiprocess_mode=mode, registry=registry)
