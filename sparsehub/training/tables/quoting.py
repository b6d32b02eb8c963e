"""Whether the double quotes of a file stand around cells or are characters of its texts.

Read the wrong way a file loses rows without a word, so it is read both ways. Where both give as many cells in every row
as the header has, what a program that writes quotes would never write decides; where nothing does, the user is asked.
"""

from __future__ import annotations

from pathlib import Path

from sparsehub.errors import DataError
from sparsehub.training.tables.encodings import TextFile
from sparsehub.training.tables.readings import PlainReading, QuotedReading, read_plain, read_quoted
from sparsehub.training.tables.records import DOUBLE, ESCAPED, NONE

_BOTH = f"--quoting {DOUBLE} where quotes stand around cells, --quoting {NONE} where they belong to the texts"
_MEND = "a cell that holds the delimiter or a line's end stands between double quotes, with quotes inside it doubled"


def find_quoting(file: TextFile, skipped: int, delimiter: str, width: int) -> str:
    """The way of quoting under which the whole file makes sense; raises `DataError` where none does, or two.

    skipped: lines above the header. width: the header's number of cells.
    """
    if not file.quotes:
        return NONE
    plain = read_plain(file, skipped, delimiter, width)
    quoted = read_quoted(file, skipped, delimiter, width, DOUBLE)
    if plain.problem:
        return _around_cells(file.path, plain, quoted)
    if not plain.bare and not plain.pieces and not plain.backslashes:
        return _by_cells(file.path, delimiter, plain, quoted)
    if quoted.problem:
        escaped = (
            plain.backslashes and not plain.bare and not read_quoted(file, skipped, delimiter, width, ESCAPED).problem
        )
        return _characters(file.path, escaped, plain, quoted)
    if quoted.over_lines and not plain.bare:
        if quoted.ends_tell:
            return DOUBLE
        raise _two(file.path, "quotes can stand around cells of several lines, or be characters", plain, quoted)
    return NONE


def _around_cells(path: Path, plain: PlainReading, quoted: QuotedReading) -> str:
    """Quotes as characters make no sense: they stand around cells, or nothing makes sense."""
    if quoted.problem:
        first, other = (quoted, plain) if quoted.needed else (plain, quoted)
        ways = (("with", "without") if first is quoted else ("without", "with"))[1]
        fix = f"{_MEND}; or give --delimiter, or --quoting {NONE} where quotes belong to the texts"
        raise DataError(f"{path}: {first.problem}", found=f"{ways} quotes around cells {other.problem}", fix=fix)
    if quoted.swallows:
        raise _two(path, "lines between quotes look like rows", plain, quoted)
    return DOUBLE


def _characters(path: Path, escaped: bool, plain: PlainReading, quoted: QuotedReading) -> str:
    """Quotes around cells make no sense: they are characters, unless backslashes or a lost cell say otherwise."""
    if escaped:
        fix = f"give --quoting {ESCAPED}; --quoting {NONE} where quotes and backslashes belong to the texts"
        raise DataError(f"quotes of {path} seem to have backslashes before them", found=quoted.problem, fix=fix)
    if quoted.lacks_cells and not plain.bare:
        raise _two(path, quoted.problem, plain, quoted)
    return NONE


def _by_cells(path: Path, delimiter: str, plain: PlainReading, quoted: QuotedReading) -> str:
    """All quotes stand around whole cells of one line: a program wrote them, or they are titles in quotes.

    In CSV they are the former (RFC 4180); a table of tabs has no such rule, and Excel quotes a cell there for a comma.
    """
    whole = any(count >= plain.rows - 1 for count in plain.wrapped.values())
    by_excel = not plain.bare_commas and not plain.needless
    if plain.doubled or whole or by_excel or delimiter != "\t":
        return DOUBLE
    raise _two(path, "some cells stand between quotes and need none", plain, quoted)


def _two(path: Path, why: str, plain: PlainReading, quoted: QuotedReading) -> DataError:
    readings = f"with quotes around cells {quoted.outcome}, with quotes as characters {plain.outcome}"
    return DataError(f"{path} can be read in two ways", found=f"{why}: {readings}", fix=f"give {_BOTH}")


def mismatch(path: Path, line: int, cells: int, width: int) -> DataError:
    """The error for a row with more or fewer cells than the header."""
    fix = f"{_MEND}; --delimiter and --quoting say how the file is written"
    return DataError(f"line {line} of {path} has {count_cells(cells)}", expected=f"the header's {width}", fix=fix)


def count_cells(count: int) -> str:
    """`1 cell`, `3 cells`."""
    return f"{count} cell{'s' * (count != 1)}"
