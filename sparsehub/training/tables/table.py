"""A table as it was read: its rows, where they stand, and what was found out about its file."""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sparsehub.errors import DataError

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Part:
    """Rows of a table that came from one file."""

    source: str  # what errors call it
    lines: Sequence[int] = ()  # the line on which each row begins, from 1; empty where the file has no lines
    first: int = 0  # the table's row, from 0, with which it begins


@dataclass(frozen=True)
class Table:
    """The rows of one source, with the fields in use only."""

    rows: Sequence[Row]
    fields: tuple[str, ...]  # all fields of the source, in their order, those that are not in use too
    parts: tuple[Part, ...]  # at least one, in the order of their rows
    declared: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # names behind the numbers of a field
    untyped: bool = False  # whether every cell is a text: nothing tells a number from a text that looks like one
    detected: tuple[str, ...] = ()  # what was found out about the file, for people

    def place(self, index: int) -> str:
        """What errors call the row with this number, from 0: by its file and line, and its number from 1 there."""
        return place_of(self.parts, index)


def place_of(parts: Sequence[Part], index: int) -> str:
    """What errors call a row of a table with these parts: `line 3 of rows.csv, row 2`."""
    part = parts[bisect.bisect([part.first for part in parts], index) - 1]
    row = index - part.first
    return f"{f'line {part.lines[row]} of ' if part.lines else ''}{part.source}, row {row + 1}"


def joined(tables: Sequence[Table], names: Sequence[str]) -> Table:
    """The rows of several files, which have the same fields, as one table. names: what errors call the files."""
    first, rows, parts = tables[0], list[Row](), list[Part]()
    for table, name in zip(tables, names, strict=True):
        parts.append(Part(name, table.parts[0].lines, len(rows)))
        rows += table.rows
        if set(table.fields) != set(first.fields):
            found = f"fields {', '.join(table.fields)}"
            raise DataError(f"{name} has other fields than {names[0]}", found=found, expected=", ".join(first.fields))
    return Table(rows, first.fields, tuple(parts), first.declared, first.untyped, first.detected)
