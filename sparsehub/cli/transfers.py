"""Progress of a transfer: on a terminal a bar with bytes, rate and time left; then one line that says what it took."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from rich.markup import escape

from sparsehub.cli.output import errors
from sparsehub.cli.progress_display import Terminal
from sparsehub.package.units import size_text
from sparsehub.progress import BYTES, Advance, current_display

Report = Callable[[int, int], None]


@contextmanager
def transfer(what: str) -> Iterator[Report]:
    """Yields the function to call with the bytes done and the bytes of all. Nothing is shown where nothing moves."""
    began, found = time.monotonic(), _Transfer(what)
    with found.bar:
        yield found.report
    if found.moved:
        seconds = max((found.ended or time.monotonic()) - began, 1e-3)
        line = f"{what}: {size_text(found.moved)} in {seconds:.2f} s, {size_text(found.moved / seconds)}/s"
        errors.print(escape(line), highlight=False)


class _Transfer:
    """Bytes that move, and the bar that shows them; threads that report take turns."""

    def __init__(self, what: str):
        self._what = what
        display = current_display()
        own = Terminal(errors) if display is None and errors.is_terminal else None
        self._bars = display if isinstance(display, Terminal) else own
        self._advance: Advance | None = None
        self.bar = ExitStack()
        self.moved = 0
        self.ended: float | None = None

    def report(self, done: int, total: int) -> None:
        if self._advance is None and self._bars is not None:
            self._advance = self.bar.enter_context(self._bars.work(self._what, total, BYTES))
        if self._advance is not None:
            self._advance(done - self.moved)
        self.moved = done
        if done >= total:
            self.bar.close()  # what is done with the bytes has bars of its own
            self.ended = time.monotonic()
