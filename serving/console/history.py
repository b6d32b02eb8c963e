"""What the live charts show: the difference between two looks at the tasks, for as long as the page is open."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

LOOKS = 150  # that are kept: five minutes
BUSIEST = 6  # tasks that have lines of their own
THROUGHPUT, P50, P99, RESIDENT, MEMORY = "throughput", "p50", "p99", "resident", "memory"
CHARTS = (THROUGHPUT, P50, P99, RESIDENT, MEMORY)
ALL = "all tasks"
Point = tuple[datetime, str, float]


class History:
    """points: by chart, each a time, a series and a value; bounded. Of one open page."""

    def __init__(self) -> None:
        self.points: dict[str, deque[tuple[Point, ...]]] = {chart: deque(maxlen=LOOKS) for chart in CHARTS}
        self._before: tuple[datetime, dict[str, int]] | None = None

    def look(self, tasks: Sequence[Mapping[str, Any]], now: datetime) -> None:
        """Note the state of the tasks, as `GET /v1/tasks` tells it."""
        counts = {task["digest"]: task["requests"] for task in tasks}
        where = Counter(task["where"] for task in tasks)
        self._note(RESIDENT, now, {name: where[name] for name in ("device", "host", "loading", "disk")})
        self._note(MEMORY, now, {"on the device": sum(task["bytes"] for task in tasks) / (1 << 20)})
        if self._before is not None:
            then, earlier = self._before
            seconds = max((now - then).total_seconds(), 1e-3)
            asked = {d: (count - earlier.get(d, 0)) / seconds for d, count in counts.items()}
            self._note_busy([(max(asked[task["digest"]], 0.0), task) for task in tasks], now)
        self._before = (now, counts)

    def series(self, chart: str) -> list[Point]:
        return [point for look in self.points[chart] for point in look]

    def _note_busy(self, rates: Sequence[tuple[float, Mapping[str, Any]]], now: datetime) -> None:
        busy = sorted((pair for pair in rates if pair[0] > 0), key=lambda pair: -pair[0])[:BUSIEST]
        self._note(THROUGHPUT, now, {ALL: sum(rate for rate, _ in rates), **{t["id"]: rate for rate, t in busy}})
        self._note(P50, now, {task["id"]: task["p50_ms"] for _, task in busy})
        self._note(P99, now, {task["id"]: task["p99_ms"] for _, task in busy})

    def _note(self, chart: str, now: datetime, values: Mapping[str, float]) -> None:
        self.points[chart].append(tuple((now, name, float(value)) for name, value in values.items()))
