"""How far long work is, told to whoever watches: the command line does, Python and the endpoint do not.

with work("hashing model.safetensors", size, BYTES) as advance:
    advance(len(chunk))
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Protocol

BYTES = "bytes"  # the unit that is shown in KiB and MiB
Advance = Callable[[int], None]
"""Called with how much more is done; by any thread."""


class ProgressDisplay(Protocol):
    """Shows work while it goes on."""

    def work(self, what: str, total: int | None, unit: str) -> AbstractContextManager[Advance]:
        """One piece of work, until the block ends. total: how much there is, None where nobody knows."""


class Quiet:
    """Shows nothing: a program reads what is written."""

    @contextmanager
    def work(self, what: str, total: int | None, unit: str) -> Iterator[Advance]:  # noqa: ARG002
        yield lambda _: None


_display: ContextVar[ProgressDisplay | None] = ContextVar("display", default=None)


def current_display() -> ProgressDisplay | None:
    """Who shows the work of this thread; None for nobody."""
    return _display.get()


@contextmanager
def work(what: str, total: int | None = None, unit: str = "") -> Iterator[Advance]:
    """Work that may take seconds; yields what to call as it gets on."""
    display = _display.get()
    if display is None:
        yield lambda _: None
        return
    with display.work(what, total, unit) as advance:
        yield advance


@contextmanager
def shown_by(display: ProgressDisplay) -> Iterator[None]:
    """Inside it, work of this thread is shown by `display`."""
    token = _display.set(display)
    try:
        yield
    finally:
        _display.reset(token)
