"""What an endpoint tells Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from sparsehub.engine import BatchReport, Engine

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Counters of one endpoint. `observe` is called by the model thread after every batch."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own = {"registry": self.registry, "namespace": "sparsehub"}
        self._rows = Counter("rows", "Rows answered, by task and outcome", ["task", "outcome"], **own)
        self._tokens = Counter("tokens", "Tokens run, padding included", ["task"], **own)
        self._switches = Counter("switches", "Times the arena moved from one task to another", **own)
        self._batch = Histogram("batch_rows", "Rows of a batch", buckets=_ROWS, **own)
        self._phase = Histogram("phase_seconds", "Where a batch's time went", ["phase"], buckets=_SECONDS, **own)
        self._requests = Counter("requests", "HTTP requests, by route and status", ["route", "status"], **own)
        self._waiting = Gauge("waiting_rows", "Rows in the queue", multiprocess_mode="livesum", **own)
        self._tasks = Gauge("tasks", "Tasks that are served", multiprocess_mode="livemax", **own)
        self._bytes = Gauge("task_bytes", "Memory of all patches and heads", multiprocess_mode="livemax", **own)
        self._healthy = Gauge("healthy", "1 while the engine takes work", multiprocess_mode="livemin", **own)

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
