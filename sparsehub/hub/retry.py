"""Another try, after a while that doubles, for what a network may have broken."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

from sparsehub.errors import UnreachableError

T = TypeVar("T")
ATTEMPTS = 6
FIRST_WAIT, LONGEST_WAIT = 0.25, 8.0  # seconds
GIVE_UP = 20.0  # seconds: a hub that hangs must not keep whoever waits for it as often as one that refuses may be asked


def with_retries(action: Callable[[], T], progress: Callable[[], int] = lambda: 0) -> T:
    """What `action` returns; it is called again after each `UnreachableError`, up to six times in all.

    No other try begins when twenty seconds have brought nothing. progress: grows with what the tries bring.
    """
    began, seen = time.monotonic(), progress()
    for attempt in range(ATTEMPTS - 1):
        try:
            return action()
        except UnreachableError:
            if progress() != seen:
                began, seen = time.monotonic(), progress()
            elif time.monotonic() - began > GIVE_UP:
                raise
            wait_before(attempt)
    return action()


def wait_before(attempt: int) -> None:
    """Sleep for the back-off of the attempt (from 0): half to all of a time that doubles, so that clients spread."""
    time.sleep(min(LONGEST_WAIT, FIRST_WAIT * 2**attempt) * random.uniform(0.5, 1))
