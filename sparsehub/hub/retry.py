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


def with_retries(action: Callable[[], T]) -> T:
    """What `action` returns; it is called again after each `UnreachableError`, up to six times in all."""
    for attempt in range(ATTEMPTS - 1):
        try:
            return action()
        except UnreachableError:
            wait_before(attempt)
    return action()


def wait_before(attempt: int) -> None:
    """Sleep for the back-off of the attempt (from 0): half to all of a time that doubles, so that clients spread."""
    time.sleep(min(LONGEST_WAIT, FIRST_WAIT * 2**attempt) * random.uniform(0.5, 1))
