"""JSON lines, and arrays of objects: read object by object, and only the fields in use are kept."""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from sparsehub.errors import DataError
from sparsehub.training.tables.encodings import BYTE_ORDER_MARK, TextFile
from sparsehub.training.tables.table import Part, Row, Table

_CHUNK = 1 << 20  # characters
_SPACE = re.compile(r"[ \t\r\n]*")


def read_json(file: TextFile, wanted: Sequence[str] | None) -> Table:
    """The table of a file with an object on each line, or with one array of objects; raises `DataError`."""
    objects = _elements if _begins(file) == "[" else _lines
    rows, lines, fields = list[Row](), array("L"), dict[str, None]()
    for line, value in objects(file, json.JSONDecoder(object_pairs_hook=_once)):
        if not isinstance(value, dict):
            raise _no_object(file, line, value)
        if not value.keys() <= fields.keys():
            fields.update(dict.fromkeys(value))
        rows.append(value if wanted is None else {name: value.get(name) for name in wanted})
        lines.append(line)
    if wanted is None:
        rows = [{name: row.get(name) for name in fields} for row in rows]
    return Table(rows, tuple(fields), (Part(str(file.path), lines),), detected=(file.detected, "JSON"))


def _begins(file: TextFile) -> str:
    return next((text[0] for line in file.lines() if (text := line.strip(" \t\r\n"))), "")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys are all different; of two equal ones Python would drop the first without a word."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} twice")
    return found


def _lines(file: TextFile, decoder: json.JSONDecoder) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(file.lines(), 1):
        if text := line.strip(" \t\r\n"):
            yield number, _decoded(file, number, decoder.decode, text)


def _elements(file: TextFile, decoder: json.JSONDecoder) -> Iterator[tuple[int, Any]]:
    """The elements of an array, as the file is read: what was given out is dropped."""
    stream = _Stream(file)
    stream.skip(_SPACE)
    stream.take("[")
    stream.skip(_SPACE)
    while stream.peek() != "]":
        yield stream.line, stream.element(decoder)
        stream.skip(_SPACE)
        if stream.peek() != "]":
            stream.take(",")
            stream.skip(_SPACE)
    stream.take("]")
    stream.skip(_SPACE)
    if stream.peek():
        raise _damaged(file, stream.line, "text after the array")


class _Stream:
    """The characters of a file with a place in them; what lies before it is forgotten."""

    def __init__(self, file: TextFile):
        self._file, self._chunks = file, _chunks(file)
        self._text, self._at = "", 0
        self.line = 1

    def _more(self, size: int) -> bool:
        """Read on until `size` more characters are there; False at the file's end."""
        chunk = next(self._chunks, "")
        if not chunk:
            return False
        pieces = [self._text[self._at :], chunk]
        while len(chunk) < size and (piece := next(self._chunks, "")):
            pieces.append(piece)
            size -= len(piece)
        self._text, self._at = "".join(pieces), 0
        return True

    def _go(self, to: int) -> None:
        self.line += self._text.count("\n", self._at, to)
        self._at = to

    def peek(self) -> str:
        """The character here; empty at the file's end."""
        if self._at == len(self._text) and not self._more(_CHUNK):
            return ""
        return self._text[self._at]

    def skip(self, pattern: re.Pattern[str]) -> None:
        """Go over all that matches."""
        while self.peek() and (found := pattern.match(self._text, self._at)) and found.end() > self._at:
            self._go(found.end())

    def take(self, character: str) -> None:
        """Go over one character that must be here; raises `DataError`."""
        if self.peek() != character:
            found = repr(self.peek()) if self.peek() else "the file's end"
            raise _damaged(self._file, self.line, f"{found}, where {character!r} is expected")
        self._go(self._at + 1)

    def element(self, decoder: json.JSONDecoder) -> Any:
        """The value that begins here. More is read while it has no end: each time as much as is there already."""
        while True:
            try:
                value, end = decoder.raw_decode(self._text, self._at)
                if end < len(self._text) or not self._more(_CHUNK):  # a number may go on in the next chunk
                    self._go(end)
                    return value
            except json.JSONDecodeError as error:
                if not self._more(max(_CHUNK, len(self._text) - self._at)):
                    line = self.line + self._text.count("\n", self._at, error.pos)
                    raise _damaged(self._file, line, error.msg) from None
            except (ValueError, RecursionError) as error:
                raise _damaged(self._file, self.line, str(error)) from None


def _chunks(file: TextFile) -> Iterator[str]:
    with file.open() as opened:
        yield opened.read(1).removeprefix(BYTE_ORDER_MARK) + opened.read(_CHUNK)
        while chunk := opened.read(_CHUNK):
            yield chunk


def _decoded(file: TextFile, line: int, decode: Callable[[str], Any], text: str) -> Any:
    try:
        return decode(text)
    except json.JSONDecodeError as error:
        raise _damaged(file, line, f"{error.msg} at column {error.colno}: {text[:60]}") from None
    except (ValueError, RecursionError) as error:
        raise _damaged(file, line, str(error)) from None


def _damaged(file: TextFile, line: int, found: str) -> DataError:
    return DataError(
        f"{file.path} cannot be read as a data set",
        found=f"line {line}: {found}",
        expected="an object on each line, or one array of objects",
    )


def _no_object(file: TextFile, line: int, value: Any) -> DataError:
    return _damaged(file, line, f"{type(value).__name__} {json.dumps(value)[:60]}")
