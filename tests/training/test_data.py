from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sparsehub.errors import DataError
from sparsehub.training.data import TaskData

Load = Callable[..., TaskData]
AsFile = Callable[[list[dict[str, Any]], Path], str]
Write = Callable[..., str]
ROWS = [
    {"text": "a film", "label": "good"},
    {"text": 'a "bad", film\nand long', "label": "bad"},
    {"text": "Ünïcode ✓", "label": "good"},
]


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


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "tsv", "parquet"])
def test_every_kind_of_file_gives_the_same_rows(load: Load, as_file: AsFile, tmp_path: Path, suffix: str) -> None:
    data = load(as_file(ROWS, tmp_path / f"rows.{suffix}"))
    assert [row["text"] for row in data.train.rows] == [row["text"] for row in ROWS]
    assert data.task.labels == ("bad", "good")
    assert list(data.train.targets) == [1, 0, 1]
    assert (data.validation, data.test) == (None, None)


def test_a_data_set_folder_is_read_by_its_split(load: Load, as_file: AsFile, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    as_file(ROWS, tmp_path / "set" / "train.jsonl")
    as_file(ROWS[:2], tmp_path / "set" / "test.jsonl")
    data = load(f"{tmp_path / 'set'}:train", test=f"{tmp_path / 'set'}:test")
    assert data.test is not None
    assert (len(data.train.rows), list(data.test.targets)) == (3, [1, 0])


def test_declared_labels_keep_their_order(load: Load, tmp_path: Path) -> None:
    source = labelled(tmp_path / "set", {"text": ["a", "b", "c"], "label": [0, 1, 0]}, names=["zebra", "ape"])
    data = load(source)
    assert (data.task.labels, list(data.train.targets)) == (("zebra", "ape"), [0, 1, 0])


def test_declared_labels_in_another_order_mean_the_same(load: Load, tmp_path: Path) -> None:
    source = labelled(tmp_path / "set", {"text": ["a", "b", "c"], "label": [0, 1, 0]}, names=["zebra", "ape"])
    data = load(source, labels=("ape", "zebra"))
    assert (data.task.labels, list(data.train.targets)) == (("ape", "zebra"), [1, 0, 1])


def test_declared_labels_may_be_given_new_names(load: Load, tmp_path: Path) -> None:
    source = labelled(tmp_path / "set", {"text": ["a", "b"], "label": [0, 1]}, names=["zebra", "ape"])
    data = load(source, labels=("striped", "hairy"))
    assert (data.task.labels, list(data.train.targets)) == (("striped", "hairy"), [0, 1])


def test_declared_labels_that_are_numbers_are_names_and_not_places(load: Load, tmp_path: Path) -> None:
    source = labelled(tmp_path / "set", {"text": ["a", "b", "c"], "label": [0, 1, 2]}, names=["1", "2", "3"])
    data = load(source)
    assert (data.task.labels, list(data.train.targets)) == (("1", "2", "3"), [0, 1, 2])


def test_a_declared_label_of_minus_one_is_refused(load: Load, tmp_path: Path) -> None:
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
def test_labels_are_found_in_order(
    load: Load, write_rows: Write, found: list[Any], labels: Any, targets: list[int]
) -> None:
    data = load(write_rows({"text": "x", "label": label} for label in found))
    assert (data.task.labels, list(data.train.targets)) == (labels, targets)


@pytest.mark.parametrize("found", [["no", "yes", "no"], [0, 1, 0]])
def test_given_labels_are_names_for_texts_and_for_numbers(load: Load, write_rows: Write, found: list[Any]) -> None:
    source = write_rows({"text": "x", "label": label} for label in found)
    data = load(source, labels=("no", "yes"))
    assert (data.task.labels, list(data.train.targets)) == (("no", "yes"), [0, 1, 0])


def test_a_given_label_that_the_training_rows_lack_is_kept(load: Load, write_rows: Write) -> None:
    data = load(write_rows(ROWS), labels=("good", "bad", "odd"))
    assert (data.task.labels, list(data.train.targets)) == (("good", "bad", "odd"), [0, 1, 0])


def test_a_number_that_is_no_label_is_not_taken_for_a_place(load: Load, write_rows: Write) -> None:
    """With the labels 1, 2, 3 a 0 is an error, not the first of them."""
    train = write_rows({"text": "x", "label": label} for label in (1, 2, 3))
    validation = write_rows([{"text": "x", "label": 0}], "dev.jsonl")
    with pytest.raises(DataError, match=r"dev\.jsonl, row 1: a label.*found: 0; expected: 1, 2, 3"):
        load(train, validation=validation)


QUESTIONS = [{"q": "why", "a": "because", "b": "so", "right": value} for value in (0, 1)]


@pytest.mark.parametrize("values", [(0, 1), ("a", "b")])
def test_the_right_choice_is_given_by_place_or_by_field(load: Load, write_rows: Write, values: tuple[Any, Any]) -> None:
    rows = [{**row, "right": value} for row, value in zip(QUESTIONS, values, strict=True)]
    data = load(write_rows(rows), "multiple-choice", ("q",), choices=("a", "b"), label="right")
    assert (data.task.labels, data.task.choice_fields) == (("a", "b"), ("a", "b"))
    assert list(data.train.targets) == [0, 1]


def test_choices_called_by_numbers_are_still_counted_from_zero(load: Load, write_rows: Write) -> None:
    rows = [{"q": "why", "1": "because", "2": "so", "right": value} for value in (0, 1)]
    data = load(write_rows(rows), "multiple-choice", ("q",), choices=("1", "2"), label="right")
    assert list(data.train.targets) == [0, 1]


@pytest.mark.parametrize("value", [2, -1, "c", True, 0.5])
def test_a_choice_that_is_not_there_is_refused(load: Load, write_rows: Write, value: Any) -> None:
    source = write_rows([{**QUESTIONS[0], "right": value}])
    with pytest.raises(DataError, match=r"train\.jsonl, row 1: a label that the task does not have"):
        load(source, "multiple-choice", ("q",), choices=("a", "b"), label="right")


def test_tags_are_found_and_aligned_with_the_words(load: Load, write_rows: Write) -> None:
    rows = [{"w": ["a", "b"], "t": ["O", "B-X"]}, {"w": "c d e", "t": ["O", "I-X", "O"]}, {"w": ["a"], "t": ["O"]}]
    data = load(write_rows(rows[:1] + rows[2:]), "token-classification", ("w",), label="t")
    assert (data.task.labels, list(data.train.targets)) == (("B-X", "O"), [[1, 0], [1]])
    data = load(write_rows(rows[1:2]), "token-classification", ("w",), label="t")
    assert list(data.train.targets) == [[1, 0, 1]]


@pytest.mark.parametrize(
    ("words", "found"),
    [([], "an empty list"), ("", "an empty text"), (["a", " "], "white space"), ([""], "white space")],
)
def test_words_of_which_there_are_none_are_refused_as_in_a_request(
    load: Load, write_rows: Write, words: Any, found: str
) -> None:
    source = write_rows([{"w": ["a", "b"], "t": ["O", "X"]}, {"w": words, "t": ["O"] * len(words)}])
    with pytest.raises(DataError, match=rf"train\.jsonl, row 2: a row has no text in the field 'w'; found: {found}"):
        load(source, "token-classification", ("w",), label="t")


def test_declared_tags_keep_their_order(load: Load, tmp_path: Path) -> None:
    source = labelled(tmp_path / "set", {"text": [["a", "b"]], "label": [[1, 0]]}, names=["O", "B-X"])
    data = load(source, "token-classification")
    assert (data.task.labels, list(data.train.targets)) == (("O", "B-X"), [[1, 0]])


@pytest.mark.parametrize("values", [[1, 2.5], ["1", "2.5"]])
def test_a_regression_takes_numbers_and_texts_of_numbers(load: Load, write_rows: Write, values: list[Any]) -> None:
    data = load(write_rows({"text": "x", "label": value} for value in values), "regression")
    assert (data.task.labels, list(data.train.targets)) == ((), [1.0, 2.5])


@pytest.mark.parametrize("text", ["None", "NA", "null", "nan", "N/A"])
@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_words_that_pandas_takes_for_nothing_are_texts_and_labels(
    load: Load, as_file: AsFile, tmp_path: Path, text: str, suffix: str
) -> None:
    source = as_file([{"text": text, "label": text}, {"text": "b", "label": "b"}], tmp_path / f"rows.{suffix}")
    data = load(source)
    assert data.train.rows[0]["text"] == text
    assert set(data.task.labels) == {text, "b"}
