"""CSV and TSV files: every cell a text as it is written, every row with as many cells as the header."""

from __future__ import annotations

import csv
import itertools
from array import array
from collections.abc import Iterator, Sequence

from sparsehub.errors import DataError
from sparsehub.training.tables.delimiters import NAMES, SAMPLE, find_delimiter, told_delimiter
from sparsehub.training.tables.encodings import TextFile
from sparsehub.training.tables.layout_settings import Layout
from sparsehub.training.tables.quoting import find_quoting, mismatch
from sparsehub.training.tables.records import DOUBLE, ESCAPED, NONE, Record, records
from sparsehub.training.tables.table import Part, Row, Table

_QUOTES = {DOUBLE: "quoted cells", ESCAPED: "quoted cells, backslashes before quotes", NONE: "quotes are text"}


def read_delimited(file: TextFile, usual: str, wanted: Sequence[str] | None, layout: Layout) -> Table:
    """The table of a CSV or TSV file; raises `DataError`, which names the line.

    usual: the delimiter that its name promises. wanted: the fields in use; None for all.
    """
    sample = list(itertools.islice(file.lines(), SAMPLE))
    told = told_delimiter(sample[0]) if sample else None
    skipped = 1 if told else 0
    delimiter = layout.delimiter or told or find_delimiter(sample[skipped:], usual, wanted or ())
    fields = _header(file, skipped, delimiter, layout.quoting)
    _check_names(file, fields, wanted)
    quoting = layout.quoting or find_quoting(file, skipped, delimiter, len(fields))
    lines, rows = array("L"), list[Row]()
    used = [(name, place) for place, name in enumerate(fields) if wanted is None or name in wanted]
    for line, cells in _rows(file, skipped, delimiter, quoting):
        if len(cells) != len(fields):
            raise mismatch(file.path, line, len(cells), len(fields))
        lines.append(line)
        rows.append({name: cells[place] for name, place in used})
    detected = (file.detected, f"{NAMES.get(delimiter, repr(delimiter))}-delimited", *_about(file, quoting))
    return Table(rows, fields, (Part(str(file.path), lines),), untyped=True, detected=detected)


def _about(file: TextFile, quoting: str) -> tuple[str, ...]:
    return (_QUOTES[quoting],) if file.quotes else ()


def _header(file: TextFile, skipped: int, delimiter: str, quoting: str | None) -> tuple[str, ...]:
    """The names in the first record; where quotes are not settled, by quotes if those close."""
    for way in (quoting,) if quoting else (DOUBLE, NONE):
        try:
            return tuple(next(records(file.lines(skipped), delimiter, way), (0, []))[1])
        except csv.Error:
            continue
    raise DataError(f"the header of {file.path} has quotes that do not close", fix=f"give --quoting {NONE}")


def _check_names(file: TextFile, fields: Sequence[str], wanted: Sequence[str] | None) -> None:
    if not fields:
        raise DataError(f"{file.path} has no rows")
    for name in fields if wanted is None else wanted:
        if fields.count(name) > 1:
            raise DataError(f"{file.path} has two fields {name!r}", found=f"fields {', '.join(fields)}")


def _rows(file: TextFile, skipped: int, delimiter: str, quoting: str) -> Iterator[Record]:
    """The records below the header, with their lines in the file."""
    line = 0
    try:
        for line, cells in itertools.islice(records(file.lines(skipped), delimiter, quoting), 1, None):
            yield line + skipped, cells
    except csv.Error as error:
        problem = f"below line {line + skipped} of {file.path} quotes around cells do not close as they should"
        raise DataError(problem, found=error, fix=f"give --quoting {NONE} where quotes belong to the texts") from error
