"""A limit on the time that Python code of others may compute, such as a chat template."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from sparsehub.errors import DataError


@contextmanager
def time_limit(seconds: float, what: str) -> Iterator[None]:
    """Raises `DataError` inside the block once this thread has computed in it for longer than `seconds`.

    The clock is looked at before every line of Python that runs in the block, so one call of C code is not interrupted.
    Time that other threads and processes take does not count.
    """
    end, before = time.thread_time() + seconds, sys.gettrace()

    def look(_: FrameType, __: str, ___: Any) -> Any:
        if time.thread_time() > end:
            raise DataError(f"{what} does not come to an end", found=f"more than {seconds:g} s")
        return look

    sys.settrace(look)
    try:
        yield
    finally:
        sys.settrace(before)
