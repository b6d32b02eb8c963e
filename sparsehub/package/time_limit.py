"""A limit on the time that Python code of others may compute, such as a chat template."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from sparsehub.errors import DataError

STEPS = 16  # from one look at the clock to the next, which takes as long as many lines


@contextmanager
def time_limit(seconds: float, what: str, source: str) -> Iterator[None]:
    """Raises `DataError` inside the block once this thread has computed in it for longer than `seconds`.

    source: the file name of the code that may loop. The clock is looked at between its lines and where any function is
    called, so one call of C code is not interrupted. Time that other threads and processes take does not count.
    """
    end, before, steps = time.thread_time() + seconds, sys.gettrace(), 0

    def look(frame: FrameType, _: str, __: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps % STEPS == 0 and time.thread_time() > end:
            raise DataError(f"{what} does not come to an end", found=f"more than {seconds:g} s")
        return look if frame.f_code.co_filename == source else None  # all lines of all would take thrice as long

    sys.settrace(look)
    try:
        yield
    finally:
        sys.settrace(before)
