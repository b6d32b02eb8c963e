"""The summary of a package: what every card, report and terminal shows, whatever stands in the manifest."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from sparsehub.package import Manifest, read_manifest
from sparsehub.package.describe import limits, training_text, values_text
from sparsehub.package.summary import summarize


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
    (split,) = summarize(dataclasses.replace(spoilt, metrics={"test": {"accuracy": 0.5}})).metrics.splits
    assert (split.split, split.data) == ("test", "")


def test_values_and_limits_are_those_of_the_package(manifest: Manifest) -> None:
    assert values_text(manifest) == f"{manifest.delta.value_dtype}, added to the weights"
    replaced = dataclasses.replace(manifest, delta=dataclasses.replace(manifest.delta, value_kind="set"))
    assert values_text(replaced).endswith("put in place of weights")
    assert limits(dataclasses.replace(manifest, metrics={}))[-1].startswith("It was not measured")


def test_a_summary_is_made_and_rendered_without_torch(folder: Path) -> None:
    code = (
        "import pathlib, sys; from sparsehub.package import read_manifest; "
        "from sparsehub.package.card import render_card; from sparsehub.package.summary import summarize; "
        "render_card(summarize(read_manifest(pathlib.Path(sys.argv[1])))); print('torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, timeout=60)
    assert (result.stdout, result.returncode) == ("False\n", 0), result.stderr


def test_a_baseline_stands_beside_what_was_measured(manifest: Manifest) -> None:
    data = {"test": {"source": "nyu-mll/glue:sst2:validation", "rows": 1200}}
    metrics = {"test": {"f1": 0.5, "loss": 1.0}, "test (majority)": {"f1": 0.25}}
    task = dataclasses.replace(manifest.task, metrics=("f1", "accuracy"))
    found = summarize(dataclasses.replace(manifest, task=task, metrics=metrics, training={"data": data})).metrics
    assert (found.declared, found.measured) == (("f1",), ("f1", "loss"))
    assert [(split.split, split.data, split.is_baseline) for split in found.splits] == [
        ("test", "nyu-mll/glue:sst2:validation, 1,200 rows", False),
        ("test (majority)", "", True),
    ]
    assert (found.splits[0].dataset.id, found.splits[0].dataset.configuration) == ("nyu-mll/glue", "sst2")
