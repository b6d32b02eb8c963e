"""The encoding of a file of text: by its byte order mark; UTF-8 where its bytes are, cp1252 where they can be."""

from __future__ import annotations

import codecs
import io
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sparsehub.errors import DataError
from sparsehub.training.tables.opening import chunks, open_bytes

_MARKS = {  # the longer ones first: UTF-32's begins like UTF-16's
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
BYTE_ORDER_MARK = "\ufeff"
_WESTERN = "cp1252"  # Windows' for western Europe, what Excel writes there as "CSV"
_UTF8_CHARACTER = re.compile(b"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}")
_CONTROL = re.compile(b"[\x00-\x08\x0e-\x1a\x1c-\x1f]")
# Words of western languages have single letters beyond ASCII; whole words of them come from other alphabets.
_FOREIGN_WORD = re.compile("[\u0160\u0161\u0178\u017d\u017e\u0192\u0152\u0153\u00c0-\u00ff]{4}")
_NOT_ASCII = re.compile("[^\x00-\x7f]")


@dataclass(frozen=True)
class TextFile:
    """A file of text whose every byte was decoded once; readers go through its lines as often as they need."""

    path: Path
    encoding: str  # a codec of Python
    quotes: bool  # whether there is a double quote anywhere
    detected: str  # how the encoding was found, for people

    def lines(self, skipped: int = 0) -> Iterator[str]:
        """The lines with their ends, which are a line feed, a carriage return or both; without a byte order mark."""
        with self.open() as file:
            first = file.readline().removeprefix(BYTE_ORDER_MARK)
            yield from itertools.islice(itertools.chain([first] if first else [], file), skipped, None)

    def open(self) -> io.TextIOWrapper:
        """The text from its beginning, a byte order mark included."""
        return io.TextIOWrapper(open_bytes(self.path), encoding=self.encoding, newline="")


def open_text(path: Path, encoding: str | None) -> TextFile:
    """A file with the encoding that is given, or found; raises `DataError`, which names the line that does not fit."""
    detected = encoding or _marked(path)
    try:
        quotes = _scan(path, detected or "utf-8")
    except _UndecodableError as error:
        if detected is not None:
            raise DataError(
                f"line {error.line} of {path} is no {detected}", found=error.found, fix="give --encoding"
            ) from None
        _check_western(path, error)
        quotes = _scan(path, _WESTERN)
        seen = f"{_WESTERN}, since it is not UTF-8 ({_example(path)}; --encoding for another)"
        return TextFile(path, _WESTERN, quotes, seen)
    return TextFile(path, detected or "utf-8", quotes, (detected or "utf-8").upper())


def _marked(path: Path) -> str | None:
    """The encoding of a byte order mark, or of UTF-16 without one where the text is mostly ASCII."""
    head = next(chunks(path), b"")[:4096]
    marked = next((name for mark, name in _MARKS.items() if head.startswith(mark)), None)
    if marked or b"\0" not in head:
        return marked
    odd, even = head[1::2].count(0), head[::2].count(0)
    most = len(head) // 4
    return "utf-16-le" if odd > most and not even else "utf-16-be" if even > most and not odd else None


class _UndecodableError(Exception):
    def __init__(self, line: int, found: str):
        super().__init__(line, found)
        self.line, self.found = line, found


def _scan(path: Path, encoding: str) -> bool:
    """Decode the whole file; returns whether there is a double quote in it."""
    decoder, line, quotes = codecs.getincrementaldecoder(encoding)(), 1, False
    try:
        for chunk in chunks(path):
            text = decoder.decode(chunk)
            line += text.count("\n")
            quotes = quotes or '"' in text
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        at = error.object[error.start : error.start + 1].hex()
        raise _UndecodableError(line + error.object[: error.start].count(b"\n"), f"the byte 0x{at}") from None
    return quotes


def _check_western(path: Path, error: _UndecodableError) -> None:
    """Raise `DataError` unless a file that is not UTF-8 can be cp1252: a wrong guess would change every text."""
    problem = f"line {error.line} of {path} is no UTF-8"
    beyond = characters = 0
    for chunk in chunks(path):
        if _UTF8_CHARACTER.search(chunk):
            fix = f"mend this line, or say what the file is in: --encoding {_WESTERN}, shift_jis, ..."
            raise DataError(problem, found=f"{error.found}, and UTF-8 elsewhere", fix=fix)
        try:
            text = chunk.decode(_WESTERN)
        except UnicodeDecodeError:
            text = ""
        if not text or _CONTROL.search(chunk) or _FOREIGN_WORD.search(text):
            beyond = characters = 1
            break
        beyond += len(_NOT_ASCII.findall(text))
        characters += len(text)
    if beyond * 4 > characters:
        found = f"{error.found}, and more that no western European text has"
        raise DataError(problem, found=found, fix="give --encoding: cp1251, shift_jis, gb18030, ...")


def _example(path: Path) -> str:
    """The first line with a letter beyond ASCII, as it was read."""
    with io.TextIOWrapper(open_bytes(path), encoding=_WESTERN, newline="") as file:
        number, line, found = next(
            (number, line, found) for number, line in enumerate(file, 1) if (found := _NOT_ASCII.search(line))
        )
    start = max(0, found.start() - 20)
    return f"line {number}: {line[start : found.end() + 20].strip()!r}"
