"""Progress of a transfer: on a terminal a bar with bytes, rate and time left; elsewhere one line afterwards."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from sparsehub.cli.output import errors
from sparsehub.package.units import size_text

Report = Callable[[int, int], None]


class _Rate(ProgressColumn):
    """Bytes per second in binary units, like the bytes beside it: rich's own column uses decimal ones."""

    def render(self, task: Task) -> Text:
        rate = task.finished_speed or task.speed
        return Text(f"{size_text(rate)}/s" if rate else "?", style="progress.data.speed")


@contextmanager
def transfer(what: str) -> Iterator[Report]:
    """Yields the function to call with the bytes done and the bytes of all. Nothing is shown where nothing moves."""
    if not errors.is_terminal:
        yield from _line(what)
        return
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        DownloadColumn(binary_units=True),
        _Rate(),
        TimeRemainingColumn(),
        console=errors,
    )
    tasks: list[TaskID] = []

    def report(done: int, total: int) -> None:
        if not tasks:
            tasks.append(bar.add_task(escape(what), total=total))
            bar.start()
        bar.update(tasks[0], completed=done, total=total)

    try:
        yield report
    finally:
        if tasks:
            bar.stop()


@contextmanager
def counting(what: str) -> Iterator[Report]:
    """Yields the function to call with the rows done and the rows of all; shown on a terminal only."""
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=errors,
        transient=True,
        disable=not errors.is_terminal,
    ) as bar:
        task = bar.add_task(escape(what), total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _line(what: str) -> Iterator[Report]:
    start, moved = time.monotonic(), 0

    def report(done: int, _: int) -> None:
        nonlocal moved
        moved = done

    yield report
    if moved:
        seconds = max(time.monotonic() - start, 1e-3)
        line = f"{what}: {size_text(moved)} in {seconds:.2f} s, {size_text(moved / seconds)}/s"
        errors.print(escape(line), highlight=False)
