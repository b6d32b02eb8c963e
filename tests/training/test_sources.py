"""A table in memory is a source like a file: the same rows, the same checks, an identity of its contents."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pandas
import pytest

from sparsehub.errors import DataError, UsageError
from sparsehub.training import TrainConfig, train
from sparsehub.training.data import TaskData
from sparsehub.training.run import run_identity

Load = Callable[..., TaskData]
Configure = Callable[..., TrainConfig]
Make = Callable[[list[dict[str, Any]]], Any]
ROWS = [
    {"text": "a film", "label": "good"},
    {"text": 'a "bad", film\nand long', "label": "bad"},
    {"text": "Ünïcode ✓", "label": "good"},
]
LEAST: dict[str, Any] = {"backbone": "b", "kind": "text-classification", "name": "t", "text": "text", "out": "o"}
MAKERS: dict[str, Make] = {
    "list": list,
    "tuple": tuple,
    "Dataset": datasets.Dataset.from_list,
    "DataFrame": pandas.DataFrame,
}


@pytest.fixture(params=MAKERS)
def make(request: pytest.FixtureRequest) -> Make:
    """make(rows): a source of these rows in memory, of each kind."""
    return MAKERS[request.param]


def test_a_table_in_memory_gives_the_rows_of_a_file(load: Load, write_rows: Callable[..., str], make: Make) -> None:
    data, filed = load(make(ROWS), validation=make(ROWS[:2])), load(write_rows(ROWS))
    assert list(data.train.rows) == list(filed.train.rows)
    assert list(data.train.targets) == list(filed.train.targets) == [1, 0, 1]
    assert data.task == filed.task
    assert data.validation is not None and list(data.validation.targets) == [1, 0]


def test_a_path_is_a_source_like_its_text(load: Load, write_rows: Callable[..., str]) -> None:
    source = write_rows(ROWS)
    assert load(Path(source)) == load(source)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "train has no rows"),
        ([{"text": "a"}, {"text": "b"}], "train has no field 'label'; found: fields text"),
        ([{"text": "a", "label": "x"}], "the rows of train need at least two labels; found: x"),
        ([*ROWS, {"text": None, "label": "good"}], "train, row 4: .*no text in the field 'text'"),
        ([*ROWS, {"text": "a", "label": None}], "train, row 4: a label that the task does not have; found: None"),
    ],
)
def test_what_is_wrong_with_it_is_named_by_the_setting(load: Load, make: Make, rows: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(make(rows))


def test_a_row_that_lacks_a_field_has_nothing_there(load: Load) -> None:
    with pytest.raises(DataError, match="train, row 1: a label that the task does not have; found: None"):
        load([{"text": "a"}, *ROWS])


def test_columns_of_mixed_types_cannot_be_read(load: Load) -> None:
    with pytest.raises(DataError, match="train cannot be read as a data set"):
        load([{"text": "a", "label": 1}, {"text": "b", "label": [2]}])


def test_declared_labels_of_a_data_set_keep_their_order(load: Load) -> None:
    kinds = {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["zebra", "ape"])}
    made = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]}, features=datasets.Features(kinds))
    assert load(made).task.labels == ("zebra", "ape")


def test_a_frame_of_categories_has_their_names(load: Load) -> None:
    frame = pandas.DataFrame(ROWS)
    frame["label"] = frame["label"].astype("category")
    data = load(frame.iloc[[2, 1, 0]])
    assert (data.task.labels, list(data.train.targets)) == (("bad", "good"), [1, 0, 1])
    assert set(data.train.rows[0]) == {"text", "label"}, "the index is no field"


@pytest.mark.parametrize("name", ["train", "validation", "test"])
@pytest.mark.parametrize("source", [5, {"text": ["a"]}, ["a", "b"], [["a", "x"]], {"train": None}, b"rows.csv"])
def test_what_is_no_source_is_refused(name: str, source: Any) -> None:
    with pytest.raises(UsageError, match=rf"{name} has the wrong type; .*expected: a file, data-set.*or a pandas"):
        TrainConfig(**{**LEAST, "train": ROWS, name: source})


def test_a_dictionary_of_data_sets_is_no_split() -> None:
    splits = datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)})
    with pytest.raises(UsageError, match="train has the wrong type"):
        TrainConfig(**LEAST, train=splits)


def test_a_changed_table_is_another_run(make: Make) -> None:
    changed = [{**ROWS[0], "label": "bad"}, *ROWS[1:]]
    config = TrainConfig(**LEAST, train=make(ROWS))
    assert run_identity(config) == run_identity(TrainConfig(**LEAST, train=make([dict(row) for row in ROWS])))
    others = [{"train": make(changed)}, {"train": make(ROWS[::-1])}, {"test": make(ROWS)}, {"validation": make(ROWS)}]
    identities = {run_identity(dataclasses.replace(config, **other)) for other in others}
    assert len(identities | {run_identity(config)}) == len(others) + 1


def test_a_list_that_is_changed_in_place_is_another_run_too() -> None:
    rows = [dict(row) for row in ROWS]
    config = TrainConfig(**LEAST, train=rows)
    before = run_identity(config)
    rows[0]["label"] = "bad"
    assert run_identity(config) != before


def test_a_run_on_rows_in_memory_gives_the_package_of_a_file(make_config: Configure, tmp_path: Path) -> None:
    filed = make_config(out=tmp_path / "filed", epochs=1)
    rows = pandas.read_json(str(filed.train), lines=True).to_dict("records")
    listed = train(dataclasses.replace(filed, train=rows, validation=rows, out=tmp_path / "listed")).manifest
    from_file = train(filed).manifest
    assert listed.training["data"] == {name: {"rows": len(rows)} for name in ("train", "validation")}
    assert from_file.training["data"]["train"]["source"] == Path(str(filed.train)).name
    assert (listed.delta, listed.metrics, listed.task) == (from_file.delta, from_file.metrics, from_file.task)
    assert listed.files["delta.safetensors"] == from_file.files["delta.safetensors"]
