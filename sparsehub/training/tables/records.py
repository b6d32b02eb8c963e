"""The records of a delimited file under one way of quoting: a line and its cells."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

DOUBLE, NONE, ESCAPED = "double", "none", "escaped"
QUOTINGS = (DOUBLE, NONE, ESCAPED)
Record = tuple[int, list[str]]  # the line on which it begins, from 1, and its cells


def records(lines: Iterable[str], delimiter: str, quoting: str) -> Iterator[Record]:
    """Every record that is not an empty line. Raises `csv.Error` where quotes do not close as `quoting` says.

    double: cells may stand between double quotes, and a quote inside is doubled; escaped: it has a backslash before it;
    none: a quote is a character like any other, and a line is a record.
    """
    return _plain(lines, delimiter) if quoting == NONE else _quoted(lines, delimiter, quoting == ESCAPED)


def _plain(lines: Iterable[str], delimiter: str) -> Iterator[Record]:
    for number, line in enumerate(lines, 1):
        text = line.rstrip("\r\n")
        if text:
            yield number, text.split(delimiter)


def _quoted(lines: Iterable[str], delimiter: str, escaped: bool) -> Iterator[Record]:
    escape = "\\" if escaped else None
    with _large_cells():
        reader = csv.reader(lines, delimiter=delimiter, doublequote=not escaped, escapechar=escape, strict=True)
        start = 1
        for cells in reader:
            if cells:
                yield start, cells
            start = reader.line_num + 1


@contextmanager
def _large_cells() -> Iterator[None]:
    """Python's csv module refuses cells of more than 128 KiB unless it is told otherwise, for the whole process."""
    before = csv.field_size_limit(min(sys.maxsize, (1 << 31) - 1))
    try:
        yield
    finally:
        csv.field_size_limit(before)
