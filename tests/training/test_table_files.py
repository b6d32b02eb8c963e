"""What Python's csv and json write is read back cell by cell, whatever is in the cells and however it is written."""

from __future__ import annotations

import csv
import io
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from sparsehub.errors import DataError
from sparsehub.training.sources import read_table
from sparsehub.training.tables import Layout, Table

TASKS = Path(__file__).parents[3] / "shared" / "tasks"  # real data, beside the checkout where there is any
FIELDS = ("text", "label", "source")
QUOTINGS = [csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]
pieces = st.sampled_from(
    ["a", "b c", '"', '""', ",", ";", "\t", "|", "\n", "\r\n", "\r", "007", "1.0", "é", "“", "7", "\\"]
)
cells = st.one_of(st.lists(pieces, max_size=6).map("".join), st.text(max_size=8).filter(lambda text: "\0" not in text))


def tables(cell: st.SearchStrategy[str]) -> st.SearchStrategy[list[list[str]]]:
    return st.lists(st.lists(cell, min_size=3, max_size=3), min_size=1, max_size=6)


def is_utf8(text: str) -> bool:
    try:
        return isinstance(text.encode(), bytes)
    except UnicodeEncodeError:
        return False


texts = cells.filter(is_utf8)


def written(rows: Sequence[Sequence[str]], **dialect: Any) -> str:
    file = io.StringIO()
    csv.writer(file, **dialect).writerows([FIELDS, *rows])
    return file.getvalue()


def read(data: bytes, name: str, wanted: Sequence[str] | None = FIELDS, layout: Layout | None = None) -> Table:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(data)
        return read_table(path, name, wanted, layout or Layout())


def cells_of(table: Table) -> list[list[Any]]:
    return [[row[field] for field in FIELDS] for row in table.rows]


def read_back_or_asked(data: bytes, name: str, rows: Sequence[Sequence[str]]) -> None:
    """Every cell as it was, or the user is asked which of two readings is meant: no row is lost without a word."""
    try:
        assert cells_of(read(data, name)) == rows
    except DataError as error:
        assert "can be read in two ways" in str(error) and "--quoting none" in str(error)


@settings(deadline=None, max_examples=300)
@given(
    tables(texts),
    st.sampled_from(",;\t|"),
    st.sampled_from(QUOTINGS),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
)
@example([["a,b\nc,d", "e", "f"]], ",", csv.QUOTE_MINIMAL, "utf-8")
@example([["x", "1", '"late'], ["y", "2", "b"]], "\t", csv.QUOTE_MINIMAL, "utf-8")
@example([["", "", "\r\n"], [",,\n", "", ""]], ",", csv.QUOTE_MINIMAL, "utf-8")
def test_what_a_csv_writer_writes_is_read_back(rows, delimiter, quoting, encoding):
    data = written(rows, delimiter=delimiter, quoting=quoting).encode(encoding)
    name = "rows.tsv" if delimiter == "\t" else "rows.csv"
    assert cells_of(read(data, name, layout=Layout("double", delimiter))) == rows
    if any("\r\n" in cell for row in rows for cell in row):  # as rows end: then such a cell may look like rows
        read_back_or_asked(data, name, rows)
    else:
        assert cells_of(read(data, name)) == rows


@settings(deadline=None, max_examples=200)
@given(tables(texts), st.sampled_from(",;\t|"), st.sampled_from(QUOTINGS))
def test_with_lines_that_end_as_lines_in_cells_do_a_file_is_read_back_or_refused(rows, delimiter, quoting):
    """A cell of several lines may then look like rows: asking is all that is left."""
    if (
        quoting == csv.QUOTE_MINIMAL
    ):  # Python leaves a carriage return without quotes then, and reads it as a line's end
        rows = [[cell.replace("\r", "") for cell in row] for row in rows]
    data = written(rows, delimiter=delimiter, quoting=quoting, lineterminator="\n").encode()
    assert cells_of(read(data, "rows.csv", layout=Layout("double"))) == rows
    read_back_or_asked(data, "rows.csv", rows)


plain = texts.map(lambda text: "".join(letter for letter in text if letter not in "\t\r\n")).filter(bool)


@settings(deadline=None, max_examples=200)
@given(tables(plain))
def test_quotes_that_belong_to_the_texts_lose_no_row(rows):
    """Cells that were joined by tabs: where quotes could be read otherwise the user is asked, and nothing is lost."""
    data = "".join("\t".join(row) + "\n" for row in [FIELDS, *rows]).encode()
    assert cells_of(read(data, "rows.tsv", layout=Layout("none"))) == rows
    try:
        found = read(data, "rows.tsv")
    except DataError as error:
        assert "--quoting none" in str(error)
        return
    assert len(found.rows) == len(rows)
    if not any("quoted cells" in note for note in found.detected):
        assert cells_of(found) == rows


def bytes_are_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


western = st.text(st.sampled_from("abc ,\"\n'éàüß“”—€"), max_size=20)


@settings(deadline=None, max_examples=100)
@given(tables(western))
@example([["", "", "é——"]])
def test_western_text_of_windows_is_read_as_it_is_or_refused(rows):
    rows = [[f"every day words, mostly ASCII ones {text}", "x" * 40, label] for text, _, label in rows]
    data = written(rows).encode("cp1252")
    assert cells_of(read(data, "rows.csv", layout=Layout(encoding="cp1252"))) == rows
    if bytes_are_utf8(data):  # as cp1252's "é——" are, which are a Chinese character's: such bytes are UTF-8, everywhere
        rows = [[cell.encode("cp1252").decode() for cell in row] for row in rows]
    try:
        assert cells_of(read(data, "rows.csv")) == rows
    except DataError as error:
        assert "--encoding" in str(error)


numbers = st.one_of(st.integers(), st.floats(allow_nan=False), st.booleans(), st.none())
values = st.one_of(st.text(max_size=8), numbers, st.lists(st.text(max_size=3), max_size=3))
objects = st.lists(st.fixed_dictionaries(dict.fromkeys(FIELDS, values)), min_size=1, max_size=6)


@settings(deadline=None, max_examples=200)
@given(objects, st.booleans(), st.sampled_from([None, 1, "\t"]), st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]))
@example([dict.fromkeys(FIELDS)], True, None, "utf-8-sig")
def test_what_json_writes_is_read_back(rows, ascii_only, indent, encoding):
    """Types as they are: 1 is no 1.0 and no True, and a column may change its type from row to row."""
    dumped = [json.dumps(row, ensure_ascii=ascii_only) for row in rows]
    assume(is_utf8("".join(dumped)))
    lines = "\n".join(dumped) if indent else "\r\n\n".join(dumped) + "\n"
    array = json.dumps(rows, indent=indent, ensure_ascii=ascii_only)
    for text, name in ((lines, "rows.jsonl"), (lines, "rows.ndjson"), (array, "rows.json"), (array, "rows.jsonl")):
        found = read(text.encode(encoding), name)
        assert repr(cells_of(found)) == repr([[row[field] for field in FIELDS] for row in rows])


def test_an_array_is_read_in_pieces_and_its_lines_are_counted(monkeypatch):
    monkeypatch.setattr("sparsehub.training.tables.json_rows._CHUNK", 7)
    rows = [{"text": "a" * n, "label": n, "source": None} for n in range(40)]
    found = read(json.dumps(rows, indent=2).encode(), "rows.json")
    assert found.rows == rows
    assert [found.place(i).split(" of ")[0] for i in (0, 1, 39)] == ["line 2", "line 7", "line 197"]
    with pytest.raises(DataError, match="line 4: Expecting"):
        read(b'[{"text": "a"},\n\n {"text": "b",\n oops}]', "rows.json")


@pytest.mark.parametrize("name", ["rows.csv.gz", "rows.CSV", "rows.csv.zst", "rows.csv.bz2", "rows.csv.xz", "rows.Tsv"])
def test_compressed_files_and_names_in_capitals_are_read(name):
    import bz2
    import gzip
    import lzma

    import pyarrow

    def zstandard(data: bytes) -> bytes:
        return bytes(pyarrow.compress(data, "zstd", asbytes=True))

    pack: dict[str, Callable[[bytes], bytes]] = {
        "gz": gzip.compress,
        "zst": zstandard,
        "bz2": bz2.compress,
        "xz": lzma.compress,
    }
    data = written([["a, b", "007", ""]]).encode()
    packed = pack.get(name.rpartition(".")[2], bytes)(data)
    assert cells_of(read(packed, name)) == [["a, b", "007", ""]]
    assert cells_of(read(data, name)) == [["a, b", "007", ""]], "some programs unpack and keep the name"
    if packed != data:
        with pytest.raises(DataError, match=r"cannot be read as a data set|is empty"):
            read(packed[: len(packed) // 2], name)


@pytest.mark.skipif(not TASKS.is_dir(), reason="the folder of public data sets is not there")
@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(TASKS.glob("*/*.jsonl")), ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_real_data_is_the_same_in_every_format(path, tmp_path):
    """JSON lines as csv, tsv, quoted and not: as many rows, and every cell as it was."""
    rows = [json.loads(line) for line in path.open(encoding="utf-8")]
    as_text = [{k: v if isinstance(v, str) else json.dumps(v) for k, v in row.items()} for row in rows]
    fields = list(rows[0])
    assert list(read_table(path, "rows").rows) == rows
    for name, dialect in {
        "minimal.csv": {},
        "all.csv": {"quoting": csv.QUOTE_ALL},
        "lines.csv": {"lineterminator": "\n"},
        "semicolon.csv": {"delimiter": ";"},
        "minimal.tsv": {"delimiter": "\t"},
    }.items():
        with (tmp_path / name).open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fields, **dialect)
            writer.writeheader()
            writer.writerows(as_text)
        assert list(read_table(tmp_path / name, "rows").rows) == as_text, name
    lines = [fields, *([row[field] for field in fields] for row in as_text)]
    joined = "".join("\t".join(line) + "\n" for line in lines)
    (tmp_path / "bare.tsv").write_text(joined, encoding="utf-8")
    if not any(set(value) & set("\t\n\r") for row in as_text for value in row.values()):
        assert list(read_table(tmp_path / "bare.tsv", "rows").rows) == as_text
