"""The summary of a package: what every card, report and terminal shows, whatever stands in the manifest."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from sparsehub.package import Manifest, read_manifest
from sparsehub.package.card import render_card
from sparsehub.package.describe import head_text, limits, training_text, values_text
from sparsehub.package.html_report import render_report
from sparsehub.package.plots import draw_pictures
from sparsehub.package.summary import summarize
from sparsehub.package.task_spec import HeadSpec


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


def test_baselines_of_the_training_record_stand_beside_the_metrics_each_once(manifest: Manifest) -> None:
    scores = {"accuracy": 0.75}
    baselines = {"test": {"probe": scores, "majority": {"accuracy": 0.5}, "oracle": scores}, "odd": 7}
    metrics = {"test": {"accuracy": 0.9}, "test (majority)": {"accuracy": 0.5}}
    found = summarize(dataclasses.replace(manifest, metrics=metrics, training={"baselines": baselines}))
    assert [(split.split, split.scores, split.is_baseline) for split in found.metrics.splits] == [
        ("test", {"accuracy": 0.9}, False),
        ("test (majority)", {"accuracy": 0.5}, True),
        ("test (probe)", scores, True),
    ]
    assert "baselines" not in found.training
    card = render_card(found)
    assert "| test (probe) |" in card


def test_a_package_without_a_delta_is_rendered_everywhere(manifest: Manifest) -> None:
    head = HeadSpec("linear", "mean", True, "joint")
    task = dataclasses.replace(manifest.task, head=head)
    package = summarize(dataclasses.replace(manifest, format_version=2, delta=None, task=task))
    assert "it changes none of the backbone's" in render_card(package)
    assert "nothing in the backbone changes" in render_report(package, None)
    assert draw_pictures(package, None) == {}
    assert head_text(task) == "one linear layer on the mean of a sequence's states, scaled to unit length"
