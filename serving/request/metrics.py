"""What an endpoint tells Prometheus, and what `GET /v1/tasks` tells of each task."""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from serving.auth import ANONYMOUS
from serving.catalog.reconciler import Reconciler
from serving.request.context import RequestContext
from sparsehub.engine import BatchReport, Engine
from sparsehub.engine.generation import GenerationUsage
from sparsehub.task_ref import is_composed

BACKBONE, COMPOSED = "(backbone)", "(composed)"
_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
WAITS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)
RECENT = 256  # requests of a task that its percentiles are of
MOST = 4096  # packages that are remembered, the most recently used ones
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class KeyMetrics:
    """Counters by key; a part of `Metrics`. A label is the name of a key in the key file, never what is sent."""

    def __init__(self, registry: CollectorRegistry):
        self._requests = Counter(
            "sparsehub_key_requests", "HTTP requests, by key and status", ["key", "status"], registry=registry
        )
        self._seconds = Histogram(
            "sparsehub_key_request_seconds", "What callers waited, by key", ["key"], buckets=WAITS, registry=registry
        )
        self._rows = Counter("sparsehub_key_rows", "Rows run, by key", ["key"], registry=registry)
        self._tokens = Counter(
            "sparsehub_key_tokens",
            "Tokens of requests' inputs, without padding, by key: once for all tasks that share them",
            ["key"],
            registry=registry,
        )
        self._queued = Counter(
            "sparsehub_key_queue_seconds", "What rows waited, all rows together, by key", ["key"], registry=registry
        )

    def request(self, key: str, status: int, seconds: float, tokens: int) -> None:
        """Count one HTTP request. tokens: of what it queued, as its `usage` and the key's rate count them."""
        self._requests.labels(key, str(status)).inc()
        self._seconds.labels(key).observe(seconds)
        self._tokens.labels(key).inc(tokens)

    def observe(self, report: BatchReport) -> None:
        """Count one batch."""
        for share in report.tenants:
            key = share.name or ANONYMOUS.name
            self._rows.labels(key).inc(share.rows)
            self._queued.labels(key).inc(max(0.0, share.queued))


@dataclass
class TaskCounters:
    """requests, items, failed: since the start; last: seconds since 1970; seconds: of the latest requests."""

    requests: int = 0
    items: int = 0
    failed: int = 0
    last: float = 0.0
    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))


class TaskStats:
    """Thread-safe; by digest, so a new version begins anew."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._records: OrderedDict[str, TaskCounters] = OrderedDict()

    def note(self, digest: str, items: int, failed: bool, seconds: float) -> None:
        """One answered request."""
        with self._lock:
            record = self._records.setdefault(digest, TaskCounters())
            self._records.move_to_end(digest)
            record.requests += 1
            record.items += items
            record.failed += failed
            record.last = time.time()
            record.seconds.append(seconds)
            while len(self._records) > MOST:
                self._records.popitem(last=False)

    def of(self, digest: str) -> dict[str, Any]:
        """requests, items, failed, last_used, and p50 and p99 in milliseconds; None before the first request."""
        with self._lock:
            record = self._records.get(digest, TaskCounters())
            seconds = sorted(record.seconds)
            return {
                "requests": record.requests,
                "items": record.items,
                "failed": record.failed,
                "last_used": round(record.last, 3) if record.requests else None,
                "p50_ms": percentile(seconds, 50),
                "p99_ms": percentile(seconds, 99),
            }


def percentile(seconds: Sequence[float], percent: float) -> float | None:
    """The nearest-rank percentile of sorted seconds, in milliseconds."""
    if not seconds:
        return None
    rank = max(1, math.ceil(percent / 100 * len(seconds)))
    return round(seconds[rank - 1] * 1e3, 2)


class Metrics:
    """Counters of one endpoint; its engine's `BatchObserver`."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.task_stats = TaskStats()
        registry = self.registry
        self._rows = Counter(
            "sparsehub_rows", "Rows answered, by task and outcome", ["task", "outcome"], registry=registry
        )
        self._tokens = Counter("sparsehub_tokens", "Tokens run, padding included", registry=registry)
        self._switches = Counter("sparsehub_switches", "Times the arena moved between tasks", registry=registry)
        self._batch = Histogram("sparsehub_batch_rows", "Rows of a batch", buckets=_ROWS, registry=registry)
        self._phase = Histogram(
            "sparsehub_phase_seconds", "Where a batch's time went", ["phase"], buckets=_SECONDS, registry=registry
        )
        self._requests = Counter(
            "sparsehub_requests", "HTTP requests, by route and status", ["route", "status"], registry=registry
        )
        self._route_seconds = Histogram(
            "sparsehub_request_seconds", "What callers waited, by route", ["route"], buckets=WAITS, registry=registry
        )
        self._task_requests = Counter(
            "sparsehub_task_requests",
            "Answered requests, by task, version and status",
            ["task", "version", "status"],
            registry=registry,
        )
        self._task_seconds = Histogram(
            "sparsehub_task_request_seconds",
            "What a task's callers waited",
            ["task", "version"],
            buckets=WAITS,
            registry=registry,
        )
        self._task_tokens = Counter(
            "sparsehub_task_tokens", "Tokens of rows run, without padding, by task", ["task"], registry=registry
        )
        self._task_phase = Counter(
            "sparsehub_task_row_seconds",
            "Where the time of a task's rows went, all rows together: queue, load, switch, forward, head",
            ["task", "phase"],
            registry=registry,
        )
        self._keys = KeyMetrics(registry)
        self.worst_lag = 0.0  # seconds, of the event loop since the start
        self._lag = Histogram(
            "sparsehub_event_loop_lag_seconds", "How late the event loop was", buckets=WAITS, registry=registry
        )
        self._batch_tasks = Histogram("sparsehub_batch_tasks", "Tasks of a batch", buckets=_ROWS, registry=registry)
        self._batches = Counter("sparsehub_batches", "Batches, by how they ran", ["mode"], registry=registry)
        self._predicted = Counter(
            "sparsehub_predicted_seconds",
            "What the cost model said they would take",
            ["mode"],
            registry=registry,
        )
        self._measured = Counter(
            "sparsehub_measured_seconds", "What they took: switches and forwards", ["mode"], registry=registry
        )
        self._waiting = _gauge("waiting_rows", "Rows in the queue", "livesum", registry)
        self._tasks = _gauge("tasks", "Tasks that are served", "livemax", registry)
        self._resident = _gauge("resident_tasks", "Tasks in memory, by tier", "livemax", registry, ["tier"])
        self._bytes = _gauge("resident_bytes", "Memory of the tasks, by tier", "livemax", registry, ["tier"])
        self._lookups = _gauge("lookups", "Requests, by whether their task was ready", "livesum", registry, ["was"])
        self._loads = _gauge("task_loads", "Tasks loaded since the start", "livesum", registry)
        self._evictions = _gauge("task_evictions", "Tasks dropped for others since the start", "livesum", registry)
        self._texts_kept = _gauge(
            "state_cache_texts", "Texts of batches, by whether their states were kept", "livesum", registry, ["was"]
        )
        self._states = _gauge("state_cache_bytes", "Memory of the kept states of texts", "livesum", registry)
        self._checks = _gauge("arena_checks", "Looks at the base weights, by outcome", "livesum", registry, ["outcome"])
        self._texts = _gauge("texts", "Texts that are generated, by state", "livesum", registry, ["state"])
        self._said = _gauge("generated_tokens", "Tokens generated since the start", "livesum", registry)
        self._pages = _gauge("cache_pages", "Pages of the generation cache, by state", "livesum", registry, ["state"])
        self._revision = _gauge("catalog_revision", "The catalogue's revision", "livemax", registry)
        self._refused = _gauge("catalog_refused", "Entries that could not be taken over", "livemax", registry)
        self._draining = _gauge("catalog_draining", "Versions that only finish what has begun", "livemax", registry)
        self._stale = _gauge("catalog_stale", "1 while the catalogue cannot be followed", "livemax", registry)
        self._healthy = _gauge("healthy", "1 while the engine takes work", "livemin", registry)

    def observe(self, report: BatchReport) -> None:
        """Count one batch."""
        for share in report.shares:
            task = _label(share.name)
            self._rows.labels(task, "ok").inc(share.rows - share.failed)
            self._rows.labels(task, "error").inc(share.failed)
            self._task_tokens.labels(task).inc(share.tokens)
            self._task_phase.labels(task, "queue").inc(max(0.0, share.queued - share.loading))
            self._task_phase.labels(task, "load").inc(share.loading)
            for phase in ("switch", "forward", "head"):  # every row waits for all of its batch
                self._task_phase.labels(task, phase).inc(getattr(report, phase) * share.rows)
        self._keys.observe(report)
        self._batch_tasks.observe(len(report.shares))
        self._tokens.inc(report.tokens)
        self._switches.inc(report.switches)
        self._batch.observe(report.rows)
        self._batches.labels(report.mode).inc()
        self._predicted.labels(report.mode).inc(report.predictions[report.mode])
        self._measured.labels(report.mode).inc(report.measured)
        for phase in ("queued", "switch", "forward", "head"):
            self._phase.labels(phase).observe(getattr(report, phase))

    def late(self, seconds: float) -> None:
        """Count a look at the event loop's clock; one request that holds the loop holds up all others."""
        self.worst_lag = max(self.worst_lag, seconds)
        self._lag.observe(seconds)

    def request(self, route: str, status: int, call: RequestContext, seconds: float) -> None:
        """Count one HTTP request."""
        self._requests.labels(route, str(status)).inc()
        self._route_seconds.labels(route).observe(seconds)
        self._keys.request(call.caller.name, status, seconds, call.tokens)
        for part in call.answered:
            served, its = part.info, part.status or status
            task = _label(served.name)
            version = "" if task == COMPOSED else served.version
            self._task_requests.labels(task, version, str(its)).inc()
            self._task_seconds.labels(task, version).observe(seconds)
            self.task_stats.note(served.digest, part.items, its >= 400, seconds)

    def sample(self, engine: Engine, reconciler: Reconciler | None = None) -> None:
        """Read the gauges off the engine, and off what keeps its catalogue."""
        if reconciler is not None:
            self._revision.set(reconciler.revision)
            self._refused.set(len(reconciler.refused))
            self._draining.set(reconciler.draining)
            self._stale.set(reconciler.follower.error is not None)
        usage, arena = engine.usage, engine.arena
        self._waiting.set(engine.waiting)
        self._tasks.set(len(engine.tasks))
        self._healthy.set(engine.healthy)
        for tier, tasks, nbytes in (
            ("device", usage.device_tasks, usage.device_bytes),
            ("host", usage.host_tasks, usage.host_bytes),
        ):
            self._resident.labels(tier).set(tasks)
            self._bytes.labels(tier).set(nbytes)
        self._lookups.labels("ready").set(usage.hits)
        self._lookups.labels("loaded").set(usage.misses)
        self._loads.set(usage.loads)
        self._evictions.set(usage.evictions)
        for outcome, count in (("made", arena.checks), ("failed", arena.failures), ("repaired", arena.repairs)):
            self._checks.labels(outcome).set(count)
        states = engine.states.usage
        self._states.set(states.nbytes)
        for was, count in (("kept", states.hits), ("run", states.misses), ("damaged", states.damaged)):
            self._texts_kept.labels(was).set(count)
        if engine.generator is not None:
            self._sample_texts(engine.generator.usage())

    def _sample_texts(self, used: GenerationUsage) -> None:
        self._texts.labels("running").set(used.running)
        self._texts.labels("waiting").set(used.waiting)
        self._said.set(used.tokens)
        self._pages.labels("used").set(used.pages)
        self._pages.labels("free").set(used.most - used.pages)

    def text(self, engine: Engine, reconciler: Reconciler | None = None) -> str:
        """Everything, in Prometheus' text format."""
        self.sample(engine, reconciler)
        return generate_latest(self.registry).decode()


def _label(name: str) -> str:
    """A task's name as a label. Of what requests compose there is no end, so all of it has one."""
    return (COMPOSED if is_composed(name) else name) or BACKBONE


def _gauge(
    name: str,
    text: str,
    mode: Literal["livesum", "livemax", "livemin"],
    registry: CollectorRegistry,
    labels: Sequence[str] = (),
) -> Gauge:
    """mode: how the values of several processes become one where prometheus_client runs in many."""
    return Gauge(f"sparsehub_{name}", text, labels, multiprocess_mode=mode, registry=registry)
