"""Output of commands: results on standard output, everything else on standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

PIPED_WIDTH = 200  # columns where the output is no terminal
console = Console(soft_wrap=True, width=None if sys.stdout.isatty() else PIPED_WIDTH)
errors = Console(stderr=True, soft_wrap=True)

JSON = typer.Option(False, "--json", help="Print the result as one JSON object.")


def progress(line: str) -> None:
    """Print a line of progress, above the bar of whatever is under way."""
    bars = sys.modules.get("tqdm.auto")
    if bars is None:
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


def show_table(columns: Sequence[str], rows: Sequence[Sequence[Any]], title: str | None = None) -> None:
    """Print a result for people: many rows. Columns of numbers are aligned to the right."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for index, column in enumerate(columns):
        numbers = rows and all(isinstance(row[index], int | float) for row in rows)
        table.add_column(
            column, justify="right" if numbers else "left", no_wrap=index < len(columns) - 1, overflow="fold"
        )
    for row in rows:
        table.add_row(*(escape(str(cell)) for cell in row))
    console.print(table)
