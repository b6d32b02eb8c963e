"""What the live charts show: the difference between two looks at the tasks, for as long as the page is open."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

LOOKS = 150  # that are kept: five minutes
BUSIEST = 6  # tasks that have lines of their own
THROUGHPUT, P50, P99, RESIDENT, MEMORY = "throughput", "p50", "p99", "resident", "memory"
CHARTS = (THROUGHPUT, P50, P99, RESIDENT, MEMORY)
ALL = "all tasks"
ON_DEVICE = "on the device"
PLACES = ("device", "host", "loading", "disk")
Point = tuple[datetime, str, float]
# Seven that are told apart on white and on black; the first is of what is no single task.
_GREY, *_PALETTE = ("#71717a", "#0d9488", "#ea580c", "#3b82f6", "#a855f7", "#ca8a04", "#ec4899")
_FIXED = {ALL: _GREY, ON_DEVICE: "#0d9488", "device": "#0d9488", "host": "#3b82f6", "loading": "#ea580c", "disk": _GREY}


@dataclass(frozen=True)
class TaskCount:
    """What a task was asked since it is served."""

    requests: int
    answers: int  # rows, and requests that failed: who asks what a task is, as this page does, asks for none


@dataclass(frozen=True)
class TaskTraffic:
    """What a task answered between two looks."""

    rate: float  # requests a second
    p50: float  # milliseconds, of its latest requests
    p99: float


@dataclass(frozen=True)
class TaskLook:
    """The tasks at one moment. traffic: by task, those that were asked since the look before; None at the first."""

    time: datetime
    traffic: Mapping[str, TaskTraffic] | None
    where: Mapping[str, int]  # tasks by place
    mebibytes: float  # on the device


class History:
    """The last looks of one open page, bounded; each chart's lines, and their colours."""

    def __init__(self) -> None:
        self.asked = False  # whether a task answered while the page was open
        self._looks: deque[TaskLook] = deque(maxlen=LOOKS)
        self._before: tuple[datetime, dict[str, TaskCount]] | None = None
        self._colours: dict[str, str] = {}

    def look(self, tasks: Sequence[Mapping[str, Any]], now: datetime) -> None:
        """Note the state of the tasks, as `GET /v1/tasks` tells it."""
        traffic = self._traffic(tasks, now)
        where = Counter(task["where"] for task in tasks)
        mebibytes = sum(task["bytes"] for task in tasks) / (1 << 20)
        self._looks.append(TaskLook(now, traffic, {name: where[name] for name in PLACES}, mebibytes))
        self._before = (now, {task["digest"]: _count(task) for task in tasks})
        self.asked = self.asked or bool(traffic)
        self._colour()

    def series(self, chart: str) -> list[Point]:
        """The points of a chart's lines. A line goes on while its task rests, at nothing."""
        if chart == RESIDENT:
            return [(look.time, place, float(look.where[place])) for look in self._looks for place in PLACES]
        if chart == MEMORY:
            return [(look.time, ON_DEVICE, look.mebibytes) for look in self._looks]
        points, names = [], self.busiest
        for look in self._looks:
            if look.traffic is not None:
                found = [(name, look.traffic.get(name, _REST)) for name in names]
                if chart == THROUGHPUT:
                    points.append((look.time, ALL, sum(one.rate for one in look.traffic.values())))
                points += [(look.time, name, _value(one, chart)) for name, one in found]
        return points

    @property
    def busiest(self) -> list[str]:
        """The tasks that have lines: those that were asked most of all that is remembered."""
        total: Counter[str] = Counter()
        for look in self._looks:
            total.update({name: one.rate for name, one in (look.traffic or {}).items()})  # type: ignore[arg-type]
        return [name for name, _ in total.most_common(BUSIEST)]

    def colours(self) -> dict[str, str]:
        """The colour of every line. A task keeps its own for as long as it is shown, in all charts."""
        return _FIXED | {name: self._colours[name] for name in self.busiest}

    def _colour(self) -> None:
        """Give those that have come a colour that nobody has, or one of a task that is shown no longer."""
        names = self.busiest
        for name in names:
            if name not in self._colours:
                shown = {self._colours[other] for other in names if other in self._colours}
                free = [colour for colour in _PALETTE if colour not in shown]
                unused = [colour for colour in free if colour not in self._colours.values()]
                colour = (unused or free)[0]
                self._colours = {other: its for other, its in self._colours.items() if its != colour}
                self._colours[name] = colour

    def _traffic(self, tasks: Sequence[Mapping[str, Any]], now: datetime) -> dict[str, TaskTraffic] | None:
        if self._before is None:
            return None
        then, earlier = self._before
        seconds = max((now - then).total_seconds(), 1e-3)
        found = {}
        for task in tasks:
            before, count = earlier.get(task["digest"], _NEVER), _count(task)
            if count.requests > before.requests and count.answers > before.answers:
                rate = (count.requests - before.requests) / seconds
                found[task["id"]] = TaskTraffic(rate, task["p50_ms"], task["p99_ms"])
        return found


def _count(task: Mapping[str, Any]) -> TaskCount:
    return TaskCount(task["requests"], task["items"] + task["failed"])


_NEVER = TaskCount(0, 0)
_REST = TaskTraffic(0.0, 0.0, 0.0)


def _value(traffic: TaskTraffic, chart: str) -> float:
    return {THROUGHPUT: traffic.rate, P50: traffic.p50, P99: traffic.p99}[chart]


def axis_top(values: Sequence[float]) -> int:
    """Where an axis from 0 ends, so that whole numbers divide it: 5, 10, 25, 50, 100, ..."""
    largest, unit = max(values, default=0.0), 1
    while True:
        for top in (5 * unit, 10 * unit, 25 * unit):
            if largest <= top:
                return top
        unit *= 10
