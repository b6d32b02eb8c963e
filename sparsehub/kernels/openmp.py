"""The threads that torch's CPU kernels and ours run on, for whoever is done with them for a while."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache

_SOFT = 1  # OpenMP's `omp_pause_soft`


def release_threads() -> None:
    """End the threads on which the calling thread's kernels run; its next kernel starts new ones, in some 50 us.

    OpenMP keeps such a team for every thread that ran a kernel. Where they are more threads than processors, none of
    them waits actively for the next kernel any more, and each is woken up by the system: beside a second team, idle
    though it was, a pass of one short row took 9.8 ms in place of 6.0 (MiniLM, 2 processors). So whoever is no model
    thread gives its team back. Nothing happens where torch was built without OpenMP 5.
    Source: `omp_pause_resource_all` of OpenMP 5.0; `gomp_throttled_spin_count_var` of GCC's libgomp.
    """
    if (pause := _pause()) is not None:
        pause(_SOFT)


@cache
def _pause() -> Callable[[int], int] | None:
    try:
        return ctypes.CDLL(None).omp_pause_resource_all  # of the library that torch has loaded
    except (AttributeError, OSError, TypeError):
        return None
