"""What a manifest says in words, whatever stands in it."""

from __future__ import annotations

import dataclasses
import shlex

import pytest

from sparsehub.package import Manifest, read_manifest
from sparsehub.package.describe import commands, limits, measured_on, python_lines, training_text, values_text


@pytest.fixture
def manifest(folder) -> Manifest:
    return read_manifest(folder)


def test_numbers_and_rows_are_told_for_people(manifest: Manifest) -> None:
    training = {
        "data": {"train": {"rows": 28_800, "source": "a.csv"}, "test": {"rows": 5}},
        "seed": 20_240_101,
        "trained": 113_566,
        "selection": {"pooler": 93_067},
        "epochs": 6.0,
        "note": "",
    }
    told = training_text(dataclasses.replace(manifest, training=training))
    assert told == {
        "data": "train: 28,800 rows of a.csv; test: 5 rows",
        "seed": "20240101",
        "entries trained": "113,566",
        "entries chosen in": "pooler 93,067",
        "epochs": "6.0",
    }


@pytest.mark.parametrize("data", ["a.csv", ["a"], {"test": 5}, {"test": {"rows": "five", "more": [1]}}, {"test": {}}])
def test_data_of_another_form_is_told_as_it_stands(manifest: Manifest, data) -> None:
    spoilt = dataclasses.replace(manifest, training={"data": data})
    assert set(training_text(spoilt)) == {"data"}
    assert measured_on(spoilt, "test") == ""


def test_commands_are_one_line_each_and_quoted(manifest: Manifest) -> None:
    backbone = dataclasses.replace(manifest.backbone, id="a'b\n```\n; rm -rf ~ $(x)")
    lines = commands(dataclasses.replace(manifest, backbone=backbone))
    assert [line.count("\n") + line.count("`") for line in lines] == [0, 0, 0]
    assert shlex.split(lines[0])[3] == shlex.split(lines[2])[6] == "a'b ''' ; rm -rf ~ $(x)"


def test_the_python_lines_compile(manifest: Manifest) -> None:
    backbone = dataclasses.replace(manifest.backbone, id='a"b\\')
    compile("\n".join(python_lines(dataclasses.replace(manifest, backbone=backbone))), "card", "exec")


def test_values_and_limits_are_those_of_the_package(manifest: Manifest) -> None:
    assert values_text(manifest) == f"{manifest.delta.value_dtype}, added to the weights"
    replaced = dataclasses.replace(manifest, delta=dataclasses.replace(manifest.delta, value_kind="set"))
    assert values_text(replaced).endswith("put in place of weights")
    assert limits(dataclasses.replace(manifest, metrics={}))[-1].startswith("It was not measured")
