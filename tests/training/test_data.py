from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sparsehub.errors import DataError
from sparsehub.training import TrainConfig
from sparsehub.training.data import TaskData, load_data

Write = Callable[..., str]
ROWS = [
    {"text": "a film", "label": "good"},
    {"text": 'a "bad", film\nand long', "label": "bad"},
    {"text": "Ünïcode ✓", "label": "good"},
]


def load(train: str, kind: str = "text-classification", text: tuple[str, ...] = ("text",), **more: Any) -> TaskData:
    return load_data(TrainConfig(backbone="b", kind=kind, name="t", train=train, text=text, out="o", **more))


def table(rows: list[dict[str, Any]], delimiter: str) -> str:
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def as_file(rows: list[dict[str, Any]], path: Path) -> str:
    if path.suffix == ".parquet":
        import pandas

        pandas.DataFrame(rows).to_parquet(path)
    else:
        text = {
            ".jsonl": "".join(json.dumps(row) + "\n" for row in rows),
            ".json": json.dumps(rows),
            ".csv": table(rows, ","),
            ".tsv": table(rows, "\t"),
        }[path.suffix]
        path.write_text(text, encoding="utf-8", newline="")
    return str(path)


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "tsv", "parquet"])
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, suffix: str) -> None:
    data = load(as_file(ROWS, tmp_path / f"rows.{suffix}"))
    assert [row["text"] for row in data.train.rows] == [row["text"] for row in ROWS]
    assert data.task.labels == ("bad", "good")
    assert list(data.train.targets) == [1, 0, 1]
    assert (data.validation, data.test) == (None, None)


def labelled(folder: Path, rows: dict[str, list[Any]], **names: list[str]) -> str:
    """A data set folder with a split `train`, its label column declared; returns its reference."""
    import datasets

    kinds = {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names.get("names"))}
    if isinstance(rows["label"][0], list):
        kinds = {"text": datasets.List(kinds["text"]), "label": datasets.List(kinds["label"])}
    made = datasets.Dataset.from_dict(rows, features=datasets.Features(kinds))
    folder.mkdir()
    made.to_parquet(folder / "train-00000-of-00001.parquet")
    return f"{folder}:train"


def test_a_data_set_folder_is_read_by_its_split(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    as_file(ROWS, tmp_path / "set" / "train.jsonl")
    as_file(ROWS[:2], tmp_path / "set" / "test.jsonl")
    data = load(f"{tmp_path / 'set'}:train", test=f"{tmp_path / 'set'}:test")
    assert data.test is not None
    assert (len(data.train.rows), list(data.test.targets)) == (3, [1, 0])


def test_declared_labels_keep_their_order(tmp_path: Path) -> None:
    source = labelled(tmp_path / "set", {"text": ["a", "b", "c"], "label": [0, 1, 0]}, names=["zebra", "ape"])
    data = load(source)
    assert (data.task.labels, list(data.train.targets)) == (("zebra", "ape"), [0, 1, 0])


def test_declared_labels_in_another_order_mean_the_same(tmp_path: Path) -> None:
    source = labelled(tmp_path / "set", {"text": ["a", "b", "c"], "label": [0, 1, 0]}, names=["zebra", "ape"])
    data = load(source, labels=("ape", "zebra"))
    assert (data.task.labels, list(data.train.targets)) == (("ape", "zebra"), [1, 0, 1])


def test_declared_labels_may_be_given_new_names(tmp_path: Path) -> None:
    source = labelled(tmp_path / "set", {"text": ["a", "b"], "label": [0, 1]}, names=["zebra", "ape"])
    data = load(source, labels=("striped", "hairy"))
    assert (data.task.labels, list(data.train.targets)) == (("striped", "hairy"), [0, 1])


def test_declared_labels_that_are_numbers_are_names_and_not_places(tmp_path: Path) -> None:
    source = labelled(tmp_path / "set", {"text": ["a", "b", "c"], "label": [0, 1, 2]}, names=["1", "2", "3"])
    data = load(source)
    assert (data.task.labels, list(data.train.targets)) == (("1", "2", "3"), [0, 1, 2])


def test_a_declared_label_of_minus_one_is_refused(tmp_path: Path) -> None:
    source = labelled(tmp_path / "set", {"text": ["a", "b"], "label": [0, -1]}, names=["zebra", "ape"])
    with pytest.raises(DataError, match="set:train, row 2: a label that the task does not have; found: -1"):
        load(source)


@pytest.mark.parametrize(
    ("found", "labels", "targets"),
    [
        (["b", "a", "b"], ("a", "b"), [1, 0, 1]),
        ([0, 1, 0], ("0", "1"), [0, 1, 0]),
        ([10, 9, 2], ("2", "9", "10"), [2, 1, 0]),
        ([3, 1, 2], ("1", "2", "3"), [2, 0, 1]),
        ([True, False, True], ("False", "True"), [1, 0, 1]),
        (["2", "10", "2"], ("10", "2"), [1, 0, 1]),
    ],
)
def test_labels_are_found_in_order(write_rows: Write, found: list[Any], labels: Any, targets: list[int]) -> None:
    data = load(write_rows({"text": "x", "label": label} for label in found))
    assert (data.task.labels, list(data.train.targets)) == (labels, targets)


@pytest.mark.parametrize("found", [["no", "yes", "no"], [0, 1, 0]])
def test_given_labels_are_names_for_texts_and_for_numbers(write_rows: Write, found: list[Any]) -> None:
    source = write_rows({"text": "x", "label": label} for label in found)
    data = load(source, labels=("no", "yes"))
    assert (data.task.labels, list(data.train.targets)) == (("no", "yes"), [0, 1, 0])


def test_a_given_label_that_the_training_rows_lack_is_kept(write_rows: Write) -> None:
    data = load(write_rows(ROWS), labels=("good", "bad", "odd"))
    assert (data.task.labels, list(data.train.targets)) == (("good", "bad", "odd"), [0, 1, 0])


def test_a_number_that_is_no_label_is_not_taken_for_a_place(write_rows: Write) -> None:
    """With the labels 1, 2, 3 a 0 is an error, not the first of them."""
    train = write_rows({"text": "x", "label": label} for label in (1, 2, 3))
    validation = write_rows([{"text": "x", "label": 0}], "dev.jsonl")
    with pytest.raises(DataError, match=r"dev\.jsonl, row 1: a label.*found: 0; expected: 1, 2, 3"):
        load(train, validation=validation)


QUESTIONS = [{"q": "why", "a": "because", "b": "so", "right": value} for value in (0, 1)]


@pytest.mark.parametrize("values", [(0, 1), ("a", "b")])
def test_the_right_choice_is_given_by_place_or_by_field(write_rows: Write, values: tuple[Any, Any]) -> None:
    rows = [{**row, "right": value} for row, value in zip(QUESTIONS, values, strict=True)]
    data = load(write_rows(rows), "multiple-choice", ("q",), choices=("a", "b"), label="right")
    assert (data.task.labels, data.task.choice_fields) == (("a", "b"), ("a", "b"))
    assert list(data.train.targets) == [0, 1]


def test_choices_called_by_numbers_are_still_counted_from_zero(write_rows: Write) -> None:
    rows = [{"q": "why", "1": "because", "2": "so", "right": value} for value in (0, 1)]
    data = load(write_rows(rows), "multiple-choice", ("q",), choices=("1", "2"), label="right")
    assert list(data.train.targets) == [0, 1]


@pytest.mark.parametrize("value", [2, -1, "c", True, 0.5])
def test_a_choice_that_is_not_there_is_refused(write_rows: Write, value: Any) -> None:
    source = write_rows([{**QUESTIONS[0], "right": value}])
    with pytest.raises(DataError, match=r"train\.jsonl, row 1: a label that the task does not have"):
        load(source, "multiple-choice", ("q",), choices=("a", "b"), label="right")


def test_tags_are_found_and_aligned_with_the_words(write_rows: Write) -> None:
    rows = [{"w": ["a", "b"], "t": ["O", "B-X"]}, {"w": "c d e", "t": ["O", "I-X", "O"]}, {"w": [], "t": []}]
    data = load(write_rows(rows[:1] + rows[2:]), "token-classification", ("w",), label="t")
    assert (data.task.labels, list(data.train.targets)) == (("B-X", "O"), [[1, 0], []])
    data = load(write_rows(rows[1:2]), "token-classification", ("w",), label="t")
    assert list(data.train.targets) == [[1, 0, 1]]


def test_declared_tags_keep_their_order(tmp_path: Path) -> None:
    source = labelled(tmp_path / "set", {"text": [["a", "b"]], "label": [[1, 0]]}, names=["O", "B-X"])
    data = load(source, "token-classification")
    assert (data.task.labels, list(data.train.targets)) == (("O", "B-X"), [[1, 0]])


@pytest.mark.parametrize("values", [[1, 2.5], ["1", "2.5"]])
def test_a_regression_takes_numbers_and_texts_of_numbers(write_rows: Write, values: list[Any]) -> None:
    data = load(write_rows({"text": "x", "label": value} for value in values), "regression")
    assert (data.task.labels, list(data.train.targets)) == ((), [1.0, 2.5])


@pytest.mark.parametrize("text", ["None", "NA", "null", "nan", "N/A"])
@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_words_that_pandas_takes_for_nothing_are_texts_and_labels(tmp_path: Path, text: str, suffix: str) -> None:
    source = as_file([{"text": text, "label": text}, {"text": "b", "label": "b"}], tmp_path / f"rows.{suffix}")
    data = load(source)
    assert data.train.rows[0]["text"] == text
    assert set(data.task.labels) == {text, "b"}


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
def test_a_bad_row_is_named_with_its_file(write_rows: Write, bad: dict[str, Any], message: str) -> None:
    source = write_rows([PAIR, {**PAIR, "label": "y"}, bad], "pairs.jsonl")
    with pytest.raises(DataError, match=rf"pairs\.jsonl, row 3: .*{message}"):
        load(source, text=("one", "two"))


@pytest.mark.parametrize("value", [5, ["a"], {"a": "b"}])
def test_a_text_that_is_no_string_is_named_with_its_file_and_row(write_rows: Write, value: Any) -> None:
    source = write_rows([{"text": value, "label": "x"}, {"text": value, "label": "y"}])
    with pytest.raises(DataError, match=r"train\.jsonl, row 1: .*no text in the field 'text'.*found: \w+ in 'text'"):
        load(source)


def test_an_empty_cell_of_a_csv_is_a_missing_text(tmp_path: Path) -> None:
    source = as_file([{"text": "a", "label": "x"}, {"text": "", "label": "y"}], tmp_path / "rows.csv")
    with pytest.raises(DataError, match=r"rows\.csv, row 2: a row has no text"):
        load(source)


def test_a_field_that_no_row_has_is_named(write_rows: Write) -> None:
    with pytest.raises(DataError, match=r"train\.jsonl, row 1: .*'body'; found: fields text, label"):
        load(write_rows(ROWS), text=("body",))
    with pytest.raises(DataError, match=r"train\.jsonl has no field 'class'; found: fields text, label"):
        load(write_rows(ROWS), label="class")
    with pytest.raises(DataError, match=r"dev\.jsonl has no field 'label'"):
        load(write_rows(ROWS), validation=write_rows([{"text": "a"}], "dev.jsonl"))


def test_a_label_that_only_the_validation_has_is_refused(write_rows: Write) -> None:
    validation = write_rows([ROWS[0], {"text": "b", "label": "odd"}], "dev.jsonl")
    with pytest.raises(DataError, match=r"dev\.jsonl, row 2: .*found: 'odd'; expected: bad, good"):
        load(write_rows(ROWS), validation=validation)


@pytest.mark.parametrize(
    ("tags", "found"), [(["O"], "1 labels"), (["O", "X", "O"], "3 labels"), (None, "NoneType"), ([], "0 labels")]
)
def test_tags_that_do_not_align_are_refused(write_rows: Write, tags: Any, found: str) -> None:
    source = write_rows([{"w": ["a", "b"], "t": ["O", "X"]}, {"w": ["a", "b"], "t": tags}])
    with pytest.raises(
        DataError, match=rf"row 2: labels and words do not align; found: {found}; expected: a list of 2"
    ):
        load(source, "token-classification", ("w",), label="t")


@pytest.mark.parametrize("tags", ["O X", 3])
def test_tags_that_are_no_list_are_refused(write_rows: Write, tags: Any) -> None:
    source = write_rows([{"w": ["a", "b"], "t": tags}])
    with pytest.raises(DataError, match=r"train\.jsonl"):
        load(source, "token-classification", ("w",), label="t")
    with pytest.raises(DataError, match=r"train\.jsonl, row 1: labels and words do not align; found: (str|int)"):
        load(source, "token-classification", ("w",), label="t", labels=("O", "X"))


def test_lists_are_no_labels_of_a_text(write_rows: Write) -> None:
    source = write_rows([{"text": "a", "label": ["x"]}, {"text": "b", "label": ["y", "x"]}])
    with pytest.raises(DataError, match=r"the rows of .*train\.jsonl need at least two labels; found: none"):
        load(source)
    with pytest.raises(DataError, match=r"train\.jsonl, row 1: a label that the task does not have"):
        load(source, labels=("x", "y"))


@pytest.mark.parametrize("rows", [ROWS[:1], [ROWS[0], ROWS[2]]])
def test_one_label_alone_is_refused(write_rows: Write, rows: list[dict[str, Any]]) -> None:
    with pytest.raises(DataError, match=r"the rows of .*train\.jsonl need at least two labels; found: good"):
        load(write_rows(rows))


@pytest.mark.parametrize("labels", [("good",), ("good", "bad", "good")])
def test_given_labels_that_make_no_task_are_refused(write_rows: Write, labels: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match="at least two labels, each of them once; found: good"):
        load(write_rows(ROWS), labels=labels)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None, "high"])
def test_the_label_of_a_regression_is_a_finite_number(tmp_path: Path, value: Any) -> None:
    import pandas

    values = [str(1.0), value] if isinstance(value, str) else [1.0, value]
    path = tmp_path / "rows.parquet"
    pandas.DataFrame({"text": ["a", "b"], "label": values}).to_parquet(path)
    with pytest.raises(DataError, match=r"rows\.parquet, row 2: the label of a regression must be a finite number"):
        load(str(path), "regression")


def test_what_is_not_a_number_is_no_label_either(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    rows = {"text": ["a", "b", "c", "d"], "label": [1.0, 2.0, float("nan"), float("nan")]}
    parquet.write_table(pyarrow.table(rows), tmp_path / "rows.parquet")
    with pytest.raises(DataError, match=r"rows\.parquet, row 3: a label that the task does not have; found: nan"):
        load(str(tmp_path / "rows.parquet"))


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.parquet"])
def test_an_empty_or_missing_file_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=f"there is no file .*{name}"):
        load(str(tmp_path / name))
    (tmp_path / name).touch()
    with pytest.raises(DataError, match=f"{name} is empty"):
        load(str(tmp_path / name))


@pytest.mark.parametrize("text", ["text,label\n", "\n"])
def test_a_table_without_rows_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "rows.csv").write_text(text)
    with pytest.raises(DataError, match=r"rows\.csv (has no rows|cannot be read)"):
        load(str(tmp_path / "rows.csv"))


@pytest.mark.parametrize(("name", "text"), [("rows.jsonl", "{nonsense"), ("rows.parquet", "no parquet")])
def test_a_file_that_is_something_else_is_named(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=f"{name} cannot be read as a data set"):
        load(str(tmp_path / name))


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.xlsx").write_text("x")
    with pytest.raises(DataError, match=r"unknown kind of file; found: \.xlsx; expected: \.jsonl"):
        load(str(tmp_path / "rows.xlsx"))


@pytest.mark.parametrize("source", ["nothing", "nothing:", ":train", ""])
def test_what_names_no_source_is_refused(source: str) -> None:
    with pytest.raises(DataError, match="is no data source"):
        load(source)


def test_a_split_that_the_data_set_lacks_is_refused(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    as_file(ROWS, tmp_path / "set" / "train.jsonl")
    with pytest.raises(DataError, match="set:tran cannot be read as a data set"):
        load(f"{tmp_path / 'set'}:tran")
