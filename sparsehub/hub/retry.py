"""Retries with exponential back-off, for requests to a hub over the network."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

from sparsehub.errors import UnreachableError

T = TypeVar("T")
ATTEMPTS = 6
FIRST_WAIT, LONGEST_WAIT = 0.25, 8.0  # seconds
GIVE_UP = 20.0  # seconds without progress: a hub that hangs is given up sooner than one that refuses


def with_retries(action: Callable[[], T], progress: Callable[[], int] = lambda: 0) -> T:
    """What `action` returns; it is called again after each `UnreachableError`, up to six times in all.

    No further attempt begins after twenty seconds without progress. progress: a number that grows with each success
    in part, bytes for instance.
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
    """Sleep before the next attempt: half to all of a time that doubles with `attempt`, so that clients spread."""
    time.sleep(min(LONGEST_WAIT, FIRST_WAIT * 2**attempt) * random.uniform(0.5, 1))
