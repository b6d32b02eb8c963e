"""What the Hugging Face Hub makes of a package: its own reader of cards gets every line back."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries

from sparsehub.package import Manifest, read_manifest
from sparsehub.package.card import render_card
from sparsehub.package.metadata import eval_results
from sparsehub.package.summary import dataset_of, summarize
from sparsehub.package.task_spec import KINDS, TaskSpec

GOLDEN = Path(__file__).parents[1] / "golden" / "package"
MakeTask = Callable[..., TaskSpec]
DATA = {"train": "nyu-mll/glue:sst2:train", "validation": "nyu-mll/glue:sst2:validation", "test": "held-out.jsonl"}


@pytest.fixture
def manifest(make_task: MakeTask) -> Manifest:
    data = {split: {"source": source, "rows": 10} for split, source in DATA.items()}
    return dataclasses.replace(
        read_manifest(GOLDEN),
        task=make_task("text-classification", metrics=("accuracy", "macro_f1")),
        training={"data": data, "seed": 1},
        metrics={
            "validation": {"accuracy": 0.5, "macro_f1": 0.25},
            "validation (majority)": {"accuracy": 0.4, "macro_f1": 0.1},
            "test": {"accuracy": 0.75},
        },
    )


def card_of(manifest: Manifest) -> str:
    return render_card(summarize(manifest))


def metadata(card: str) -> dict[str, Any]:
    start, text, _ = card.split("---\n", 2)
    assert start == ""
    return dict(yaml.safe_load(text))


# The Hub's names of tasks, where they are not ours.
PIPELINE_TAGS = {
    "regression": "text-classification",
    "multi-label-classification": "text-classification",
    "embedding": "sentence-similarity",
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_head_of_the_card_is_what_the_hub_searches(manifest: Manifest, make_task: MakeTask, kind: str) -> None:
    found = metadata(card_of(dataclasses.replace(manifest, task=make_task(kind), license="apache-2.0")))
    assert found == {
        "library_name": "sparsehub",
        "base_model": "example/backbone",
        "base_model_relation": "adapter",
        "pipeline_tag": PIPELINE_TAGS.get(kind, kind),
        "tags": ["sparsehub", "sparse-delta"],
        "license": "apache-2.0",
        "datasets": ["nyu-mll/glue"],
    }


def test_the_hubs_own_reader_gets_data_and_metrics_back(manifest: Manifest) -> None:
    data = ModelCard(card_of(manifest)).data
    assert (data.library_name, data.base_model, data.base_model_relation) == (
        "sparsehub",
        "example/backbone",
        "adapter",
    )
    assert (data.datasets, data.metrics) == (["nyu-mll/glue"], ["accuracy", "f1"])
    results = {(r.dataset_split, r.dataset_name, r.metric_name): r for r in data.eval_results or []}
    assert set(results) == {
        ("validation", "nyu-mll/glue", "accuracy"),
        ("validation", "nyu-mll/glue", "macro_f1"),
        ("test", "held-out.jsonl", "accuracy"),
    }
    one = results["validation", "nyu-mll/glue", "macro_f1"]
    assert (one.metric_type, one.metric_value, one.dataset_config, one.task_type) == (
        "f1",
        0.25,
        "sst2",
        "text-classification",
    )


def test_eval_results_are_for_data_sets_of_the_hub_alone(manifest: Manifest) -> None:
    ((path, data),) = eval_results(summarize(manifest)).items()
    assert path == ".eval_results/sparsehub.yaml"
    (entry,) = parse_eval_result_entries(yaml.safe_load(data))
    assert (entry.dataset_id, entry.task_id, entry.value) == ("nyu-mll/glue", "sst2", 0.5)
    assert "accuracy" in str(entry.notes) and "validation" in str(entry.notes)
    assert eval_results(summarize(dataclasses.replace(manifest, training={}))) == {}
    assert eval_results(summarize(dataclasses.replace(manifest, metrics={}))) == {}


@pytest.mark.parametrize(
    "text", ["a: b", "# none", "no", "1.0", "[x]", 'with "quotes"', "two\nlines", "@x", "ünï", "-", "\x1b[31m", "---"]
)
def test_the_metadata_survives_any_text(manifest: Manifest, text: str) -> None:
    found = metadata(card_of(dataclasses.replace(manifest, license=text, name="n", training={})))
    assert found["license"] == text
    assert json.dumps(found)


@pytest.mark.parametrize(
    ("identity", "revision", "shown"),
    [
        ("sentence-transformers/all-MiniLM-L6-v2", "", True),
        ("bert-base-uncased", "0123abcd", True),
        ("my-checkpoint", "", False),
        ("a b/c", "", False),
    ],
)
def test_a_base_model_is_claimed_where_others_can_find_it(
    manifest: Manifest, identity: str, revision: str, shown: bool
) -> None:
    backbone = dataclasses.replace(manifest.backbone, id=identity, revision=revision)
    found = metadata(card_of(dataclasses.replace(manifest, backbone=backbone)))
    assert ("base_model" in found, "base_model_relation" in found) == (shown, shown)


def test_without_a_licence_none_is_claimed(manifest: Manifest) -> None:
    assert "license" not in metadata(card_of(dataclasses.replace(manifest, license="")))


@pytest.mark.parametrize("training", [{}, {"data": 5}, {"data": {"train": 5}}, {"data": {"train": {"source": 5}}}])
def test_a_manifest_may_say_anything_about_its_training(manifest: Manifest, training: dict[str, Any]) -> None:
    spoilt = dataclasses.replace(manifest, training=training)
    assert dataset_of(spoilt, "train").source == ""
    assert "datasets" not in metadata(card_of(spoilt))
