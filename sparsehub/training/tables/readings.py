"""What a delimited file looks like with its quotes as characters, and with its quotes around cells."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from sparsehub.training.tables.encodings import TextFile
from sparsehub.training.tables.records import NONE, records

_WRAPPED = re.compile(r'"([^"]|"")*"')  # a cell that a program may write so
_ESCAPED = re.compile(r'"([^"\\]|\\.)*"')  # one that other programs write so
_PIECE = re.compile(r'"([^"]|"")*|([^"]|"")*"|([^"]|"")*')  # a piece of one that goes over several lines


@dataclass
class PlainReading:
    """The file with quotes as characters, a row on each line."""

    rows: int = 0  # with the header
    problem: str = ""  # the first line with another number of cells
    wrapped: Counter[int] = field(default_factory=Counter)  # cells between quotes, by column
    doubled: bool = False  # whether one of them has a doubled quote inside
    needless: bool = False  # whether one of them has no comma and no quote inside
    bare: bool = False  # whether a cell has quotes where no program writes them that quotes cells
    pieces: bool = False  # whether a cell may be the beginning or the end of a quoted one of several lines
    bare_commas: bool = False  # whether a cell with a comma has no quotes
    backslashes: bool = False  # whether a cell between quotes has one inside with a backslash before it

    @property
    def outcome(self) -> str:
        return self.problem or f"{self.rows - 1} rows"

    def look_at(self, column: int, cell: str) -> None:
        """Take a cell with a quote or a comma into account."""
        if '"' not in cell:
            self.bare_commas = True
            return
        if _WRAPPED.fullmatch(cell):
            inside = cell[1:-1]
            self.wrapped[column] += 1
            self.doubled = self.doubled or '"' in inside
            self.needless = self.needless or not ("," in inside or '"' in inside)
        elif _ESCAPED.fullmatch(cell):
            self.backslashes = True
        elif _PIECE.fullmatch(cell):
            self.pieces = True
        else:
            self.bare = True


@dataclass
class QuotedReading:
    """The file with quotes around cells."""

    rows: int = 0  # with the header
    problem: str = ""  # the first record whose quotes do not close, or with another number of cells
    lacks_cells: bool = False  # whether that record is one line with too few cells
    needed: int = 0  # records of one line that would have another number of cells without the quotes
    over_lines: int = 0  # records of several lines
    like_rows: int = 0  # lines of those that have as many delimiters as a row
    unlike_rows: int = 0
    ends: set[str] = field(default_factory=set)  # what ends records
    inner_ends: set[str] = field(default_factory=set)  # what ends lines inside of records

    @property
    def outcome(self) -> str:
        return self.problem or f"{self.rows - 1} rows"

    @property
    def ends_tell(self) -> bool:
        """Whether lines inside cells end otherwise than rows do, as with Python's csv: then quotes are quotes."""
        return bool(self.inner_ends) and not self.ends & self.inner_ends

    @property
    def swallows(self) -> bool:
        """Whether what it takes for cells of several lines looks like rows, and no other cell needs its quotes."""
        alike = self.like_rows > 2 * self.unlike_rows
        return bool(self.over_lines) and alike and not self.needed and not self.ends_tell

    def look_at(self, lines: list[str], delimiter: str, width: int) -> None:
        """Take a record on these lines into account."""
        self.ends.add(_end(lines[-1]))
        if len(lines) == 1:
            self.needed += lines[0].count(delimiter) != width - 1
            return
        self.over_lines += 1
        self.inner_ends.update(map(_end, lines[:-1]))
        alike = sum(line.count(delimiter) == width - 1 for line in lines)
        self.like_rows += alike
        self.unlike_rows += len(lines) - alike


def read_plain(file: TextFile, skipped: int, delimiter: str, width: int) -> PlainReading:
    """Look at the file line by line, up to the first with another number of cells than `width`."""
    found = PlainReading()
    for line, cells in records(file.lines(skipped), delimiter, NONE):
        if len(cells) != width:
            found.problem = f"line {line + skipped} has {len(cells)} cells and the header {width}"
            break
        found.rows += 1
        for column, cell in enumerate(cells):
            if '"' in cell or ("," in cell and not found.bare_commas):
                found.look_at(column, cell)
    return found


def read_quoted(file: TextFile, skipped: int, delimiter: str, width: int, quoting: str) -> QuotedReading:
    """Look at the file record by record, up to the first whose quotes do not close or that has not `width` cells."""
    found, tape = QuotedReading(), _Tape(file.lines(skipped))
    try:
        for line, cells in records(tape, delimiter, quoting):
            lines = tape.taken()
            if len(cells) != width:
                found.problem = f"line {line + skipped} has {len(cells)} cells and the header {width}"
                found.lacks_cells = len(lines) == 1 and len(cells) < width
                return found
            found.rows += 1
            found.look_at(lines, delimiter, width)
    except csv.Error as error:
        line = tape.count - len(tape.taken()) + 1 + skipped
        never = "end of data" in str(error)
        found.problem = f"line {line} {'opens a quote that never closes' if never else 'goes on after a closing quote'}"
    return found


class _Tape:
    """Lines on their way to a reader, which remembers those since the last record."""

    def __init__(self, lines: Iterator[str]):
        self._lines, self._since, self.count = lines, list[str](), 0

    def __iter__(self) -> Iterator[str]:
        for line in self._lines:
            self.count += 1
            if self._since or line.strip("\r\n"):  # an empty line above a record is no part of it
                self._since.append(line)
            yield line

    def taken(self) -> list[str]:
        """The lines since the last time."""
        taken, self._since = self._since, []
        return taken


def _end(line: str) -> str:
    return "\r\n" if line.endswith("\r\n") else line[-1] if line[-1] in "\r\n" else ""
