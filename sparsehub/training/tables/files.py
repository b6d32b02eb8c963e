"""From a file's name to the reader of its format."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sparsehub.errors import DataError
from sparsehub.training.tables.delimited import read_delimited
from sparsehub.training.tables.encodings import open_text
from sparsehub.training.tables.json_rows import read_json
from sparsehub.training.tables.layout_settings import Layout
from sparsehub.training.tables.opening import COMPRESSED
from sparsehub.training.tables.paragraphs import read_paragraphs
from sparsehub.training.tables.parquet import read_parquet
from sparsehub.training.tables.table import Table

JSON, CSV, TSV, PARQUET, TEXT = "json", "csv", "tsv", "parquet", "text"
FORMATS = {
    ".jsonl": JSON,
    ".ndjson": JSON,
    ".json": JSON,
    ".csv": CSV,
    ".tsv": TSV,
    ".tab": TSV,
    ".parquet": PARQUET,
    ".txt": TEXT,
}
FILES = ", ".join(FORMATS)
DELIMITED = {CSV: ",", TSV: "\t"}  # formats of cells between delimiters, and the usual one


def format_of(name: str) -> str | None:
    """The format that a file's name says, in any case and compressed or not; None for a name that says none."""
    path = Path(name.lower())
    return FORMATS.get(Path(path.stem).suffix if path.suffix in COMPRESSED else path.suffix)


def read_file(path: Path, wanted: Sequence[str] | None, layout: Layout, *, name: str | None = None) -> Table:
    """The rows of a file, with the fields in use; raises `DataError`, which names the line.

    wanted: the fields in use, whether the file has them or not; None for all. name: where the path does not say the
    format.
    """
    kind = format_of(name or path.name)
    if kind is None:
        fix = "save it in one of these; a table of Excel as CSV UTF-8"
        raise DataError(f"{path}: unknown kind of file", found=path.suffix or path.name, expected=FILES, fix=fix)
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty")
    if kind == PARQUET:
        return read_parquet(path, wanted)
    file = open_text(path, layout.encoding)
    if kind in DELIMITED:
        return read_delimited(file, DELIMITED[kind], wanted, layout)
    return read_json(file, wanted) if kind == JSON else read_paragraphs(file)
