"""Data files as people have them: read as they are, or refused with what was found and what helps."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sparsehub.errors import DataError, UsageError
from sparsehub.training import TrainConfig
from sparsehub.training.data import TaskData, load_data, load_split
from sparsehub.training.tables import Layout

Load = Callable[..., TaskData]
HEADER = "text,label\n"
CYRILLIC_TEXTS = ["привет мир", "добрый день"]
CYRILLIC = HEADER + f"{CYRILLIC_TEXTS[0]},x\n{CYRILLIC_TEXTS[1]},y\n"
TWO = "a,x\nb,y\n"


@pytest.fixture
def read(load: Load, tmp_path: Path) -> Callable[..., TaskData]:
    """read(name, contents, **settings): what the loader makes of a file with these contents."""

    def make(name: str, contents: str | bytes, kind: str = "text-classification", **more: Any) -> TaskData:
        (tmp_path / name).write_bytes(contents if isinstance(contents, bytes) else contents.encode())
        return load(str(tmp_path / name), kind, **more)

    return make


def texts_of(data: TaskData) -> list[str]:
    return [row["text"] for row in data.train.rows]


READ: dict[str, tuple[str | bytes, list[str]]] = {
    "semicolons.csv": ("text;label\na, b;x\nc;y\n", ["a, b", "c"]),
    "tabs.csv": ("text\tlabel\na, b\tx\nc\ty\n", ["a, b", "c"]),
    "pipes.csv": ("text|label\na, b|x\nc|y\n", ["a, b", "c"]),
    "commas.tsv": ("text,label\na,x\nb,y\n", ["a", "b"]),
    "sep.csv": ("sep=;\r\ntext;label\r\na, b;x\r\nc;y\r\n", ["a, b", "c"]),
    "carets.csv": ("text^label\na, b^x\nc^y\n", ["a, b", "c"]),
    "mark.csv": ("\ufeff" + HEADER + TWO, ["a", "b"]),
    "utf16.csv": ((HEADER + TWO).encode("utf-16"), ["a", "b"]),
    "utf16-without-mark.csv": ((HEADER + TWO).encode("utf-16-le"), ["a", "b"]),
    "western.csv": ((HEADER + "café “ok”,x\nb,y\n").encode("cp1252"), ["café “ok”", "b"]),
    "CAPITALS.CSV": (HEADER + TWO, ["a", "b"]),
    "packed.csv.gz": (gzip.compress((HEADER + TWO).encode()), ["a", "b"]),
    "rows.ndjson": ('{"text":"a","label":1}\n\n{"text":"b","label":2}\n', ["a", "b"]),
    "lines.json": ('{"text":"a","label":1}\n{"text":"b","label":2}', ["a", "b"]),
    "old-mac.csv": ("text,label\ra,x\rb,y\r", ["a", "b"]),
    "empty-lines.csv": ("\n\n" + HEADER + "\na,x\n\nb,y\n\n", ["a", "b"]),
    "index.csv": (",text,label\n0,a,x\n1,b,y\n", ["a", "b"]),
    "numbers.csv": (HEADER + "007,x\n2024-01-05,y\n1e5,x\n", ["007", "2024-01-05", "1e5"]),
    "bare.csv": (HEADER + 'a 5" disk,x\n"open,y\nb,x\nnever came",y\n', ['a 5" disk', '"open', "b", 'never came"']),
    "never-closed.csv": (HEADER + 'a,x\n"open,y\nb,x\n', ["a", '"open', "b"]),
    "bare.tsv": ('text\tlabel\n"Hi" he said\tx\n"all"\ty\nno\tx\n', ['"Hi" he said', '"all"', "no"]),
    "excel.tsv": ('text\tlabel\n"no, never"\ty\nfine\tx\n', ["no, never", "fine"]),
    "titles.csv": (HEADER + '"all",y\nno,x\n', ["all", "no"]),
}


@pytest.mark.parametrize("name", READ)
def test_files_as_people_have_them_are_read(read: Callable[..., TaskData], name: str) -> None:
    contents, texts = READ[name]
    assert texts_of(read(name, contents)) == texts


REFUSED: dict[str, tuple[str | bytes, str]] = {
    "shifted.csv": (
        "text,label,source\nthe parcel is late,slow,web,\nok,fast,web,\n",
        r"line 2 of .*shifted\.csv has 4 cells; expected: the header's 3",
    ),
    "short.csv": (HEADER + "a,x\nb\n", "line 3 of .*has 1 cell; expected: the header's 2"),
    "long.csv": (
        HEADER + '"a, b",x\n"c\nd",y\ne,f,y\n',
        "line 5 has 3 cells and the header 2|line 5 of .* has 3 cells",
    ),
    "two-ways.csv": (
        HEADER + '"open,y\nb,x\nclosed",y\n',
        "cells 1 rows, with quotes as characters 3 rows.*--quoting none",
    ),
    "titles.tsv": ('text\tlabel\n"all"\ty\nno, never\tx\n', "need none.*--quoting double.*--quoting none"),
    "backslashes.csv": (HEADER + '"he said \\"hi\\"",x\nb,y\n', "give --quoting escaped"),
    "cyrillic.csv": (CYRILLIC.encode("cp1251"), "line 2 of .*no UTF-8.*--encoding"),
    "japanese.csv": ((HEADER + "こんにちは世界,x\nテスト,y\n").encode("shift_jis"), "--encoding .*shift_jis"),
    "half.csv": (
        (HEADER + "café,x\n").encode() + "café,y\n".encode("latin-1"),
        "line 3 of .*0xe9, and UTF-8 elsewhere",
    ),
    "workbook.csv": (b"PK\x03\x04" + bytes(40), "a zip archive.*CSV UTF-8"),
    "pointer.jsonl": ("version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    "twice.csv": ("text,label,label\na,x,y\n", "two fields 'label'"),
    "twice.jsonl": ('{"text":"a","label":1,"label":2}\n', "line 1: the key 'label' twice"),
    "broken.jsonl": ('{"text":"a","label":1}\n{"text":"b" "label":2}\n', "line 2: Expecting ',' delimiter at column"),
    "array.json": ('[{"text":"a","label":1},\n{"text":"b" "label":2}]', "line 2: Expecting ',' delimiter"),
    "no-object.jsonl": ('{"text":"a","label":1}\n["b", 2]\n', "line 2: list"),
    "nested.json": ('{\n "train": [\n {"text":"a","label":1}]}', "an object on each line, or one array of objects"),
    "zero-width.csv": (
        HEADER + "a,x\n\u200b\u200d\ufeff,y\n",
        r"line 3 of .*row 2: a row has no text in the field 'text'",
    ),
    "white.jsonl": (
        '{"text":"a","label":1}\n{"text":" \\u0007\\n","label":2}\n',
        "line 2 of .*row 2: a row has no text",
    ),
    "half-pair.jsonl": ('{"text":"a","label":1}\n{"text":"b\\ud800","label":2}\n', "row 2: .*half of a surrogate pair"),
    "no-label.csv": (HEADER + "a,x\nb, \nc,y\n", "row 2: a label that the task does not have; found: ' '"),
    "several.jsonl": (
        '{"text":"a","label":["x","y"]}\n{"text":"b","label":["y"]}\n',
        "--kind token-classification.*--kind multi-label-classification several of one text",
    ),
    "some-lists.jsonl": (
        '{"text":"a","label":"x"}\n{"text":"b","label":"z"}\n{"text":"b","label":["y"]}\n',
        "--kind token",
    ),
    "shares.jsonl": ('{"text":"a","label":0.25}\n{"text":"b","label":0.75}\n', "--kind regression.*--labels"),
    "shares.csv": (HEADER + "a,0.25\nb,1\n", "--kind regression.*--labels"),
    "spread.jsonl": (
        '{"text":"a","label":{"x":0.2}}\n{"text":"b","label":{"x":0.3}}\n',
        "likeliest.*--kind regression",
    ),
    "days.csv": (HEADER + "a,2024-01-05\nb,2024-02-05\n", "a date is no class.*--kind regression.*--labels"),
    "rows.txt": ("a\n\nb\n", r"a \.txt file has the field 'text' alone"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_for_certain_is_refused_with_what_helps(read: Callable[..., TaskData], name: str) -> None:
    contents, message = REFUSED[name]
    with pytest.raises(DataError, match=rf"(?s){message}"):
        read(name, contents)


@pytest.mark.parametrize(
    ("name", "settings", "texts"),
    [
        ("two-ways.csv", {"quoting": "none"}, ['"open', "b", 'closed"']),
        ("two-ways.csv", {"quoting": "double"}, ["open,y\nb,x\nclosed"]),
        ("titles.tsv", {"quoting": "double", "delimiter": "tab"}, ["all", "no, never"]),
        ("backslashes.csv", {"quoting": "escaped"}, ['he said "hi"', "b"]),
        ("backslashes.csv", {"quoting": "none"}, ['"he said \\"hi\\""', "b"]),
        ("cyrillic.csv", {"encoding": "cp1251"}, CYRILLIC_TEXTS),
        ("japanese.csv", {"encoding": "shift_jis"}, ["こんにちは世界", "テスト"]),
    ],
)
def test_the_settings_that_help_are_taken(
    read: Callable[..., TaskData], name: str, settings: dict[str, Any], texts: list[str]
) -> None:
    assert texts_of(read(name, REFUSED[name][0], labels=("x", "y"), **settings)) == texts


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"delimiter": "ab"}, "delimiter has the wrong type; found: str 'ab'; expected: one character, or tab"),
        ({"delimiter": '"'}, "expected: one character"),
        ({"encoding": "utf9"}, "expected: an encoding that Python has: utf-8"),
        ({"encoding": "base64"}, "expected: an encoding that Python has"),
        ({"quoting": "doubel"}, "did you mean 'double'"),
    ],
)
def test_settings_of_a_layout_are_checked(
    read: Callable[..., TaskData], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        read("rows.csv", HEADER + TWO, **settings)


def test_a_delimiter_for_a_file_that_has_none_is_refused(read: Callable[..., TaskData]) -> None:
    with pytest.raises(UsageError, match="--delimiter can only be given for CSV and TSV files"):
        read("rows.jsonl", '{"text":"a","label":1}\n{"text":"b","label":2}\n', delimiter=";")


def test_the_first_mistake_is_the_one_that_is_told(read: Callable[..., TaskData]) -> None:
    with pytest.raises(UsageError, match="unknown kind 'classification', did you mean 'text-classification'"):
        read("rows.csv", HEADER + TWO, "classification", text=("txt",), label="lable")
    with pytest.raises(DataError, match=r"no row has a field 'txt'; found: fields text, label; .*did you mean 'text'"):
        read("rows.csv", HEADER + TWO, text=("txt",), label="lable")
    with pytest.raises(DataError, match=r"has no field 'lable'; found: fields text, label; .*did you mean 'label'"):
        read("rows.csv", HEADER + TWO, label="lable")


def load_told(path: Path, **more: Any) -> tuple[TaskData, list[str]]:
    told: list[str] = []
    least = {"backbone": "b", "kind": "text-classification", "name": "t", "text": "text", "out": "o"}
    return load_data(TrainConfig(**{**least, "train": str(path), **more}), told.append), told


def test_what_was_detected_is_told(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes((HEADER.replace(",", ";") + '"caf\xe9; ok";x\nb;y\n').encode("cp1252"))
    _, (line,) = load_told(path)
    assert line.startswith(
        f"train: {path}: 2 rows, cp1252, since it is not UTF-8 (line 2: '\"café; ok\";x'; --encoding"
    )
    assert line.endswith("semicolon-delimited, quoted cells")


@pytest.mark.parametrize("labels", [("good", "Good"), ("good", "good "), ("7", "007"), ("1", "1.0"), ("x", "'x'")])
def test_labels_that_are_written_almost_alike_are_warned_about(tmp_path: Path, labels: tuple[str, str]) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(HEADER + "".join(f"a,{label}\n" for label in (*labels, "other")))
    data, told = load_told(path)
    assert set(data.task.labels) == {*labels, "other"}
    assert "differ only in how they are written" in told[1]


def test_labels_of_a_file_without_types_are_as_they_are_written(read: Callable[..., TaskData]) -> None:
    data = read("rows.csv", HEADER + "a,010\nb,007\nc,0101\nd,12345678901234567890\ne,12345678901234567891\n")
    assert data.task.labels == ("007", "010", "0101", "12345678901234567890", "12345678901234567891")
    assert list(data.train.targets) == [1, 0, 2, 3, 4]


def test_a_label_is_the_same_in_files_with_types_and_without(load: Load, tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text(HEADER + "a,10\nb,9\nc,2\n")
    (tmp_path / "dev.jsonl").write_text('{"text":"a","label":9}\n{"text":"b","label":"10"}\n{"text":"c","label":2.0}\n')
    data = load(str(tmp_path / "train.csv"), validation=str(tmp_path / "dev.jsonl"))
    assert data.task.labels == ("2", "9", "10") and data.validation is not None
    assert (list(data.train.targets), list(data.validation.targets)) == ([2, 1, 0], [1, 2, 0])
    (tmp_path / "test.csv").write_text(HEADER + "a,09\n")
    with pytest.raises(DataError, match=r"found: '09'; expected: 2, 9, 10; to do: '9' is written otherwise"):
        load(str(tmp_path / "train.csv"), test=str(tmp_path / "test.csv"))


def test_places_are_the_same_in_files_with_types_and_without(read: Callable[..., TaskData]) -> None:
    assert list(read("rows.csv", HEADER + "a,0\nb,1\n", labels=("no", "yes")).train.targets) == [0, 1]
    choices = {"text": ("q",), "choices": ("a", "b"), "label": "right"}
    found = read("rows.csv", "q,a,b,right\nwhy,so,no,1\nwhy,no,so,0\nwhy,no,so,b\n", "multiple-choice", **choices)
    assert list(found.train.targets) == [1, 0, 1]
    twofold = {"text": ("q",), "choices": ("1", "2"), "label": "right"}
    with pytest.raises(DataError, match="may be a field or a place; found: '1'"):
        read("rows.csv", "q,1,2,right\nwhy,so,no,1\n", "multiple-choice", **twofold)


@pytest.mark.parametrize(("cell", "found"), [("1.5", 1.5), (" -2e-3 ", -0.002), (".5", 0.5)])
def test_cells_of_a_regression_are_numbers(read: Callable[..., TaskData], cell: str, found: float) -> None:
    assert read("rows.csv", HEADER + f"a,{cell}\n", "regression").train.targets == [found]


@pytest.mark.parametrize(("cell", "hint"), [('"1,5"', "decimal point"), ("1_000", ""), ("", ""), ("true", "")])
def test_other_cells_of_a_regression_are_refused(read: Callable[..., TaskData], cell: str, hint: str) -> None:
    with pytest.raises(DataError, match=f"line 2 of .*must be a finite number.*{hint}"):
        read("rows.csv", HEADER + f"a,{cell}\n", "regression")


def test_a_column_that_nobody_asked_for_may_be_anything_at_any_size(load: Load, tmp_path: Path) -> None:
    """Its type changes after more than 10 MB."""
    path, long = tmp_path / "rows.jsonl", "word " * 2000
    with path.open("w") as file:
        for number in range(1200):
            other = "1" if number < 1150 else '{"deep": [true, "text"]}'
            file.write(f'{{"text": "{long}", "label": {number % 2}, "other": {other}}}\n')
    assert path.stat().st_size > 10_000_000
    data = load(str(path))
    assert len(data.train.rows) == 1200 and set(data.train.rows[1199]) == {"text", "label"}


def test_a_folder_is_its_splits(tmp_path: Path) -> None:
    for name in ("train-00000-of-00002", "train-00001-of-00002", "dev", "test"):
        (tmp_path / f"{name}.csv").write_text(HEADER + TWO)
    (tmp_path / "README.md").write_text("about")
    data, told = load_told(tmp_path)
    assert data.validation is not None and data.test is not None
    assert [len(split.rows) for split in (data.train, data.validation, data.test)] == [4, 2, 2]
    assert told[1].startswith(f"validation: {tmp_path}:validation: 2 rows")
    assert data.train.place(2) == f"line 2 of train-00001-of-00002.csv in {tmp_path}:train, row 1"
    own, _ = load_told(tmp_path, validation=[{"text": "c", "label": "x"}])
    assert own.validation is not None and len(own.validation.rows) == 1, "what is given for itself is taken"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["rows.csv"], "has no training rows; found: rows.csv; expected: a file called train"),
        (["train.csv", "train.jsonl"], "not one file for train; found: train.csv, train.jsonl"),
        (["train.csv", "training.csv"], "not one file for train"),
        (["train-00000-of-00002.csv"], "not one file for train"),
    ],
)
def test_a_folder_that_is_not_clear_is_refused(tmp_path: Path, names: list[str], message: str) -> None:
    for name in names:
        (tmp_path / name).write_text(HEADER + TWO)
    with pytest.raises(DataError, match=message):
        load_told(tmp_path)
    with pytest.raises(DataError, match="is a folder, where rows of one split are expected"):
        load_told(tmp_path, train=[{"text": "a", "label": "x"}], test=str(tmp_path))


def test_a_split_of_a_known_task_is_read_the_same_way(read: Callable[..., TaskData], tmp_path: Path) -> None:
    task = read("train.csv", HEADER + TWO).task
    (tmp_path / "test.csv").write_text("text;label\na, b;x\n", encoding="utf-16")
    told: list[str] = []
    assert list(load_split(task, str(tmp_path / "test.csv"), report=told.append).targets) == [0]
    assert "UTF-16, semicolon-delimited" in told[0]
    with pytest.raises(DataError, match=r"line 1 of .* is no ascii"):
        load_split(task, str(tmp_path / "test.csv"), Layout(encoding="ascii"))


def test_csv_files_of_a_data_set_are_never_guessed_at(load: Load, tmp_path: Path) -> None:
    """A folder that `datasets` understands and we have no rule for goes the way of a data set of the Hub."""
    (tmp_path / "set" / "parts").mkdir(parents=True)
    (tmp_path / "set" / "parts" / "train.csv").write_text(HEADER + "a,007\nb,010\n")
    assert load(f"{tmp_path / 'set'}:train").task.labels == ("007", "010")
