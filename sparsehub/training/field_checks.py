"""Whether a table has the fields that a task reads, for whoever reads rows; what is not there is told the way out."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from sparsehub.errors import DataError, UsageError
from sparsehub.training.tables.files import FILES
from sparsehub.training.tables.layout_settings import Layout
from sparsehub.training.tables.table import Table

SETTING, RENAMING = "set {flag}", "rename it in the file to {field!r}, as the task calls it"


def check_layout(layout: Layout, tables: Iterable[Table]) -> None:
    """Raise `UsageError` for settings of CSV files where there are none."""
    given = [f"--{name}" for name in ("quoting", "delimiter") if getattr(layout, name)]
    if given and not any(table.untyped for table in tables):
        raise UsageError(f"{' and '.join(given)} can only be given for CSV and TSV files", fix="leave it out")


def check_fields(source: str, table: Table, texts: Sequence[str], labels: Sequence[str], way: str = SETTING) -> None:
    """Raise `DataError` for a source without rows, or without a field in use. way: the way out, of `SETTING` where a
    flag says what the fields are called, or of `RENAMING` where the task does."""
    if not table.rows:
        raise DataError(f"{source} has no rows")
    found = f"fields {', '.join(table.fields)}"
    for field in texts:
        if field not in table.fields:
            problem = f"{table.place(0)}: no row has a field {field!r}"
            raise DataError(problem, found=found, fix=_other_field(table, field, way, "--text"))
    for label in (label for label in labels if label not in table.fields):
        problem = f"{source} has no field {label!r}"
        raise DataError(problem, found=found, fix=_other_field(table, label, way, "--label"))


def _other_field(table: Table, field: str, way: str, flag: str) -> str:
    way = way.format(flag=flag, field=field)
    near = difflib.get_close_matches(field.casefold(), [name.casefold() for name in table.fields], n=1)
    meant = next((name for name in table.fields if near and name.casefold() == near[0]), None)
    if meant is not None:
        return f"did you mean {meant!r}? {way}"
    if len(table.fields) == 1 and table.untyped:
        return f"{way}, or --delimiter"
    if len(table.fields) == 1 and "paragraphs" in table.detected:
        return f"a .txt file has the field {table.fields[0]!r} alone: tables are {FILES}"
    return way
