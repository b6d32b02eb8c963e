"""Whatever is wrong with a data set is named with its source and, where there is one, its row."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sparsehub.errors import DataError, UsageError
from sparsehub.training.data import TaskData

Load = Callable[..., TaskData]
AsFile = Callable[[list[dict[str, Any]], Path], str]
Write = Callable[..., str]
ROWS = [
    {"text": "a film", "label": "good"},
    {"text": 'a "bad", film\nand long', "label": "bad"},
    {"text": "Ünïcode ✓", "label": "good"},
]


PAIR = {"one": "a", "two": "b", "label": "x"}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"two": "b", "label": "x"}, "no text in the field 'one'"),
        ({"one": None, "two": "b", "label": "x"}, "no text in the field 'one'"),
        ({"one": "a", "two": None, "label": "x"}, "no text in the field 'two'"),
        ({"one": "a", "two": "b", "label": None}, "a label that the task does not have; found: None"),
        ({"one": "a", "two": "b"}, "a label that the task does not have; found: None"),
    ],
)
def test_a_bad_row_is_named_with_its_file(load: Load, write_rows: Write, bad: dict[str, Any], message: str) -> None:
    source = write_rows([PAIR, {**PAIR, "label": "y"}, bad], "pairs.jsonl")
    with pytest.raises(DataError, match=rf"pairs\.jsonl, row 3: .*{message}"):
        load(source, text=("one", "two"))


@pytest.mark.parametrize("value", [5, ["a"], {"a": "b"}])
def test_a_text_that_is_no_string_is_named_with_its_file_and_row(load: Load, write_rows: Write, value: Any) -> None:
    source = write_rows([{"text": value, "label": "x"}, {"text": value, "label": "y"}])
    with pytest.raises(DataError, match=r"train\.jsonl, row 1: .*no text in the field 'text'.*found: \w+ in 'text'"):
        load(source)


def test_an_empty_cell_of_a_csv_is_a_missing_text(load: Load, as_file: AsFile, tmp_path: Path) -> None:
    source = as_file([{"text": "a", "label": "x"}, {"text": "", "label": "y"}], tmp_path / "rows.csv")
    with pytest.raises(DataError, match=r"rows\.csv, row 2: a row has no text"):
        load(source)


def test_a_field_that_no_row_has_is_named(load: Load, write_rows: Write) -> None:
    with pytest.raises(DataError, match=r"train\.jsonl, row 1: .*'body'; found: fields text, label"):
        load(write_rows(ROWS), text=("body",))
    with pytest.raises(DataError, match=r"train\.jsonl has no field 'class'; found: fields text, label"):
        load(write_rows(ROWS), label="class")
    with pytest.raises(DataError, match=r"dev\.jsonl has no field 'label'"):
        load(write_rows(ROWS), validation=write_rows([{"text": "a"}], "dev.jsonl"))


def test_a_label_that_only_the_validation_has_is_refused(load: Load, write_rows: Write) -> None:
    validation = write_rows([ROWS[0], {"text": "b", "label": "odd"}], "dev.jsonl")
    with pytest.raises(DataError, match=r"dev\.jsonl, row 2: .*found: 'odd'; expected: bad, good"):
        load(write_rows(ROWS), validation=validation)


@pytest.mark.parametrize(
    ("tags", "found"), [(["O"], "1 labels"), (["O", "X", "O"], "3 labels"), (None, "NoneType"), ([], "0 labels")]
)
def test_tags_that_do_not_align_are_refused(load: Load, write_rows: Write, tags: Any, found: str) -> None:
    source = write_rows([{"w": ["a", "b"], "t": ["O", "X"]}, {"w": ["a", "b"], "t": tags}])
    with pytest.raises(
        DataError, match=rf"row 2: labels and words do not align; found: {found}; expected: a list of 2"
    ):
        load(source, "token-classification", ("w",), label="t")


@pytest.mark.parametrize("tags", ["O X", 3])
def test_tags_that_are_no_list_are_refused(load: Load, write_rows: Write, tags: Any) -> None:
    source = write_rows([{"w": ["a", "b"], "t": tags}])
    with pytest.raises(DataError, match=r"train\.jsonl"):
        load(source, "token-classification", ("w",), label="t")
    with pytest.raises(DataError, match=r"train\.jsonl, row 1: labels and words do not align; found: (str|int)"):
        load(source, "token-classification", ("w",), label="t", labels=("O", "X"))


def test_lists_are_no_labels_of_a_text(load: Load, write_rows: Write) -> None:
    source = write_rows([{"text": "a", "label": ["x"]}, {"text": "b", "label": ["y", "x"]}])
    with pytest.raises(DataError, match=r"the rows of .*train\.jsonl need at least two labels; found: none"):
        load(source)
    with pytest.raises(DataError, match=r"train\.jsonl, row 1: a label that the task does not have"):
        load(source, labels=("x", "y"))


@pytest.mark.parametrize("rows", [ROWS[:1], [ROWS[0], ROWS[2]]])
def test_one_label_alone_is_refused(load: Load, write_rows: Write, rows: list[dict[str, Any]]) -> None:
    with pytest.raises(DataError, match=r"the rows of .*train\.jsonl need at least two labels; found: good"):
        load(write_rows(rows))


@pytest.mark.parametrize("labels", [("good",), ("good", "bad", "good")])
def test_given_labels_that_make_no_task_are_refused(load: Load, write_rows: Write, labels: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match="at least two labels, each of them once; found: good"):
        load(write_rows(ROWS), labels=labels)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None, "high"])
def test_the_label_of_a_regression_is_a_finite_number(load: Load, tmp_path: Path, value: Any) -> None:
    import pandas

    values = [str(1.0), value] if isinstance(value, str) else [1.0, value]
    path = tmp_path / "rows.parquet"
    pandas.DataFrame({"text": ["a", "b"], "label": values}).to_parquet(path)
    with pytest.raises(DataError, match=r"rows\.parquet, row 2: the label of a regression must be a finite number"):
        load(str(path), "regression")


def test_what_is_not_a_number_is_no_label_either(load: Load, tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    rows = {"text": ["a", "b", "c", "d"], "label": [1.0, 2.0, float("nan"), float("nan")]}
    parquet.write_table(pyarrow.table(rows), tmp_path / "rows.parquet")
    with pytest.raises(DataError, match=r"rows\.parquet, row 3: a label that the task does not have; found: nan"):
        load(str(tmp_path / "rows.parquet"))


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.parquet"])
def test_an_empty_or_missing_file_is_named(load: Load, tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=f"there is no file .*{name}"):
        load(str(tmp_path / name))
    (tmp_path / name).touch()
    with pytest.raises(DataError, match=f"{name} is empty"):
        load(str(tmp_path / name))


@pytest.mark.parametrize("text", ["text,label\n", "\n"])
def test_a_table_without_rows_is_named(load: Load, tmp_path: Path, text: str) -> None:
    (tmp_path / "rows.csv").write_text(text)
    with pytest.raises(DataError, match=r"rows\.csv (has no rows|cannot be read)"):
        load(str(tmp_path / "rows.csv"))


@pytest.mark.parametrize(("name", "text"), [("rows.jsonl", "{nonsense"), ("rows.parquet", "no parquet")])
def test_a_file_that_is_something_else_is_named(load: Load, tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=f"{name} cannot be read as a data set"):
        load(str(tmp_path / name))


def test_a_file_of_another_kind_is_refused(load: Load, tmp_path: Path) -> None:
    (tmp_path / "rows.xlsx").write_text("x")
    with pytest.raises(DataError, match=r"unknown kind of file; found: \.xlsx; expected: \.jsonl"):
        load(str(tmp_path / "rows.xlsx"))


def test_an_empty_source_is_a_setting_without_a_value(load: Load) -> None:
    with pytest.raises(UsageError, match="train is empty; to do: give it a value"):
        load("")


@pytest.mark.parametrize("source", ["nothing", "nothing:", ":train"])
def test_what_names_no_source_is_refused(load: Load, source: str) -> None:
    with pytest.raises(DataError, match="is no data source"):
        load(source)


def test_a_split_that_the_data_set_lacks_is_refused(load: Load, as_file: AsFile, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    as_file(ROWS, tmp_path / "set" / "train.jsonl")
    with pytest.raises(DataError, match="set:tran cannot be read as a data set"):
        load(f"{tmp_path / 'set'}:tran")
