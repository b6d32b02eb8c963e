"""Rates and quotas: a token bucket."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from sparsehub.errors import RateLimitError


class TokenBucket:
    """A token bucket. Thread-safe; a second's worth (one at least) may pass at once.

    What passes is charged whole even where that leaves the bucket in debt: a request of more tokens than a second's
    worth is possible, and those after it wait until it is paid.
    rate: units a second; clock: in seconds, replaced by tests.
    """

    def __init__(self, rate: float, clock: Callable[[], float] = time.monotonic):
        self.rate, self._clock = rate, clock
        self._most = max(rate, 1.0)
        self._level, self._at = self._most, clock()
        self._lock = threading.Lock()

    def take(self, amount: float, what: str) -> None:
        """Let `amount` pass; raises `RateLimitError` while nothing is left, and charges nothing then."""
        with self._lock:
            now = self._clock()
            self._level = min(self._most, self._level + (now - self._at) * self.rate)
            self._at = now
            least = min(1.0, amount)
            if self._level < least:
                raise RateLimitError(
                    f"{what} is used up",
                    expected=f"at most {self.rate:g} a second",
                    retry_after=(least - self._level) / self.rate,
                    fix="send the request again after the given time",
                )
            self._level -= amount
