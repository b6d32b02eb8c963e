"""Plain text: what stands between two empty lines is a row, in the field `text`."""

from __future__ import annotations

from array import array

from sparsehub.training.tables.encodings import TextFile
from sparsehub.training.tables.table import Part, Row, Table

FIELD = "text"


def read_paragraphs(file: TextFile) -> Table:
    """The table of a file of plain text: a row per paragraph, its lines kept."""
    rows, starts, paragraph = list[Row](), array("L"), list[str]()

    def close() -> None:
        if paragraph:
            rows.append({FIELD: "\n".join(paragraph)})
            paragraph.clear()

    for number, line in enumerate(file.lines(), 1):
        text = line.rstrip("\r\n")
        if not text.strip():
            close()
            continue
        if not paragraph:
            starts.append(number)
        paragraph.append(text)
    close()
    return Table(rows, (FIELD,), (Part(str(file.path), starts),), detected=(file.detected, "paragraphs"))
