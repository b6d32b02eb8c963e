"""What each task did lately: how often it was asked, when last, and how long its callers waited."""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

RECENT = 256  # requests of a task that its percentiles are of
MOST = 4096  # packages that are remembered, the most recently used ones


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
        """requests, items, failed, last_used, and p50 and p99 in milliseconds; None where nobody has asked yet."""
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
