"""Output of commands: results on standard output, everything else on standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import typer
from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.table import Table

PIPED_WIDTH = 200  # columns where the output is no terminal
_GAP = "  "  # between two columns of a table
_FOLDED = 20  # columns that the last one takes at least
console = Console(soft_wrap=True, width=None if sys.stdout.isatty() else PIPED_WIDTH)
errors = Console(stderr=True, soft_wrap=True)

JSON = typer.Option(False, "--json", help="Print the result as one JSON object.")


def progress(line: str) -> None:
    """Print a line of progress, above the bar of whatever is under way."""
    bars = sys.modules.get("tqdm.auto")
    if bars is None or not getattr(bars.tqdm, "_instances", ()):
        errors.print(escape(line), highlight=False)
    else:
        bars.tqdm.write(line, file=sys.stderr)


def show_json(value: Any) -> None:
    """Print a result for programs."""
    print(json.dumps(value, ensure_ascii=False))  # noqa: T201 - rich would wrap and colour it


def show_fields(title: str, fields: Mapping[str, Any]) -> None:
    """Print a result for people: one line per field."""
    table = Table(show_header=False, box=None, pad_edge=False, title=escape(title), title_justify="left")
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in fields.items():
        table.add_row(f"[dim]{escape(name)}[/]", escape(str(value)))
    console.print(table)


def show_table(
    columns: Sequence[str], rows: Sequence[Sequence[Any]], title: str | None = None, drop: Sequence[str] = ()
) -> None:
    """Print a result for people: many rows. Columns of numbers are aligned to the right.

    drop: columns that may go where the screen is too narrow for all of them, the first of these first.
    """
    kept = _kept(columns, rows, drop)
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for index in kept:
        numbers = rows and all(isinstance(row[index], int | float) for row in rows)
        last = index == kept[-1]
        table.add_column(columns[index], justify="right" if numbers else "left", no_wrap=not last, overflow="fold")
    for row in rows:
        table.add_row(*(escape(str(row[index])) for index in kept))
    console.print(table)
    if gone := [column for index, column in enumerate(columns) if index not in kept]:
        console.print(f"[dim]no room for: {escape(', '.join(gone))}[/]", highlight=False)


def _kept(columns: Sequence[str], rows: Sequence[Sequence[Any]], drop: Sequence[str]) -> list[int]:
    """The places of the columns that are shown."""
    kept = list(range(len(columns)))
    for column in drop:
        if fits([columns[i] for i in kept], [[row[i] for i in kept] for row in rows]):
            break
        kept.remove(columns.index(column))
    return kept


def fits(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> bool:
    """Whether a table has room on the screen; its last column may be folded."""
    widths = [max(cell_len(str(cell)) for cell in column) for column in zip(columns, *rows, strict=True)]
    return sum(widths[:-1]) + len(_GAP) * (len(widths) - 1) + min(widths[-1], _FOLDED) <= console.width
