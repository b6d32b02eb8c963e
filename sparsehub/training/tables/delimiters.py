"""Which character stands between the cells of a CSV file: that of its `sep=` line, or the one that fits its header."""

from __future__ import annotations

import csv
import itertools
import re
from collections.abc import Iterable, Sequence

_LIKELY = (",", ";", "\t", "|")
_SEP_LINE = re.compile(r'"?sep=([^\r\n"])"?[\r\n]*', re.IGNORECASE)  # Excel's, above the header
SAMPLE = 100  # lines
NAMES = {",": "comma", ";": "semicolon", "\t": "tab", "|": "pipe"}


def told_delimiter(first: str) -> str | None:
    """The delimiter that a line `sep=;` names; None for any other line."""
    found = _SEP_LINE.fullmatch(first)
    return found[1] if found else None


def find_delimiter(lines: Iterable[str], usual: str, wanted: Sequence[str]) -> str:
    """The delimiter under which the header has most of the fields in use, and the rows as many cells as the header.

    lines: the beginning of the file. usual: the one that its name promises, where two are as good.
    """
    sample = [line for line in itertools.islice(lines, SAMPLE) if line.strip("\r\n")]
    others = sorted(set(re.findall(r"[^\w\s\"'.-]", sample[0]))) if sample else []
    candidates = dict.fromkeys([usual, *_LIKELY, *others])
    return max(candidates, key=lambda delimiter: _fit(sample, delimiter, wanted))


def _fit(sample: Sequence[str], delimiter: str, wanted: Sequence[str]) -> tuple[int, float]:
    rows = _cells(sample, delimiter)
    if not rows or len(rows[0]) < 2:
        return (len(set(wanted) & set(rows[0])) if rows else 0, 0.0)
    same = sum(len(row) == len(rows[0]) for row in rows)
    return len(set(wanted) & set(rows[0])), same / len(rows)


def _cells(sample: Sequence[str], delimiter: str) -> list[list[str]]:
    """The sample's rows, by quotes where those make sense."""
    try:
        return [row for row in csv.reader(sample, delimiter=delimiter, strict=True) if row]
    except csv.Error:
        return [line.strip("\r\n").split(delimiter) for line in sample]
