"""Progress of everything that takes a while: bars on a terminal, a few lines in a log file, nothing beside JSON."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from sparsehub.cli.output import errors, progress
from sparsehub.package.units import size_text
from sparsehub.progress import BYTES, Advance, Quiet, shown_by

AFTER = 2.0  # seconds of work from which on a log file hears of it
EVERY = 30.0  # seconds between two lines of the same work


def showing_progress(arguments: Sequence[str]) -> AbstractContextManager[None]:
    """For the time of a command: its work is shown in the way that fits where its words go."""
    if "--json" in arguments:
        return shown_by(Quiet())
    return shown_by(Terminal(errors) if errors.is_terminal else ProgressLines())


_BYTES = DownloadColumn(binary_units=True)


class _Amount(ProgressColumn):
    """How much is done, of how much; of work that nobody can count the seconds."""

    def render(self, task: Task) -> Text:
        if task.total is None:
            return Text(f"{task.elapsed or 0:.0f} s", style="progress.elapsed")
        if task.fields["unit"] == BYTES:
            return _BYTES.render(task)
        return Text(amount(task.completed, task.total, task.fields["unit"]), style="progress.download")


class _Rate(ProgressColumn):
    """Bytes per second in binary units, like the bytes beside it: rich's own column uses decimal ones."""

    def render(self, task: Task) -> Text:
        rate = task.finished_speed or task.speed
        return Text(
            f"{size_text(rate)}/s" if rate and task.fields["unit"] == BYTES else "", style="progress.data.speed"
        )


class Terminal:
    """Bars on standard error, a line each, which are gone when their work is done. One display holds all of them: two
    displays would write into each other's lines."""

    def __init__(self, console: Console) -> None:
        self._lock, self._shown = threading.Lock(), 0
        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            _Amount(),
            _Rate(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )

    @contextmanager
    def work(self, what: str, total: int | None, unit: str) -> Iterator[Advance]:
        task = self._bars.add_task(escape(what), total=total, unit=unit)
        self._count(1)
        try:
            yield lambda more: self._bars.advance(task, more)
        finally:
            self._count(-1)  # the last bar is drawn once more, whole, before it goes
            self._bars.remove_task(task)

    def _count(self, change: int) -> None:
        with self._lock:
            before, self._shown = self._shown, self._shown + change
            if not before:
                self._bars.start()
            elif not self._shown:
                self._bars.stop()


class ProgressLines:
    """ProgressLines on standard error: when work has gone on for a while, then now and again, and when it is done."""

    @contextmanager
    def work(self, what: str, total: int | None, unit: str) -> Iterator[Advance]:
        found = _Line(what, total, unit)
        timer = threading.Timer(AFTER, progress, [f"{what} ..."])
        timer.daemon = True
        timer.start()
        try:
            yield found.advance
        finally:
            timer.cancel()
            if found.seconds > AFTER:
                progress(f"{what}: {found.seconds:.1f} s")


class _Line:
    """Work of which a log file hears."""

    def __init__(self, what: str, total: int | None, unit: str):
        self._what, self._total, self._unit = what, total, unit
        self._done, self._lock = 0, threading.Lock()
        self._began = self._said = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def advance(self, more: int) -> None:
        with self._lock:
            self._done += more
            late = time.monotonic() - self._said > EVERY
            if late:
                self._said = time.monotonic()
        if late and self._total:
            progress(f"{self._what}: {amount(self._done, self._total, self._unit)}")


def amount(done: float, total: float, unit: str) -> str:
    """`3 of 12 tensors`, `1.0 of 4.2 GiB`."""
    if unit == BYTES:
        return f"{size_text(done)} of {size_text(total)}"
    return f"{done:,.0f} of {total:,.0f} {unit}".rstrip()
