from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from sparsehub.package import Manifest, read_manifest
from sparsehub.package.card import write_card
from sparsehub.package.manifest import KINDS, TaskSpec

GOLDEN = Path(__file__).parents[1] / "golden" / "package"
MakeTask = Callable[..., TaskSpec]


@pytest.fixture
def manifest(make_task: MakeTask) -> Manifest:
    return dataclasses.replace(read_manifest(GOLDEN), task=make_task("text-classification"))


def metadata(card: str) -> dict[str, Any]:
    start, text, _ = card.split("---\n", 2)
    assert start == ""
    return dict(yaml.safe_load(text))


def posted(card: str) -> Any:
    """What the shell line of the card would send."""
    (line,) = (line for line in card.splitlines() if line.startswith("curl "))
    words = shlex.split(line)
    return json.loads(words[words.index("-d") + 1])


@pytest.mark.parametrize("kind", KINDS)
def test_the_metadata_is_what_the_hub_reads(manifest: Manifest, make_task: MakeTask, kind: str) -> None:
    card = write_card(dataclasses.replace(manifest, task=make_task(kind), license="apache-2.0"))
    assert metadata(card) == {
        "library_name": "sparsehub",
        "base_model": manifest.backbone.id,
        "base_model_relation": "adapter",
        "pipeline_tag": "text-classification" if kind == "regression" else kind,
        "license": "apache-2.0",
    }


@pytest.mark.parametrize(
    "text", ["a: b", "# none", "no", "1.0", "[x]", 'with "quotes"', "two\nlines", "@x", "ünï", "-"]
)
def test_the_metadata_survives_any_text(manifest: Manifest, text: str) -> None:
    backbone = dataclasses.replace(manifest.backbone, id=text)
    found = metadata(write_card(dataclasses.replace(manifest, license=text, backbone=backbone)))
    assert (found["license"], found["base_model"]) == (text, text)


def test_without_a_licence_none_is_claimed(manifest: Manifest) -> None:
    assert "license" not in metadata(write_card(dataclasses.replace(manifest, license="")))


@pytest.mark.parametrize(
    ("kind", "route", "item"),
    [
        ("text-classification", "classify", "..."),
        ("token-classification", "classify", "..."),
        ("regression", "score", "..."),
        ("multiple-choice", "classify", {"ask": "...", "first": "...", "second": "..."}),
    ],
)
def test_the_request_fits_the_task(manifest: Manifest, make_task: MakeTask, kind: str, route: str, item: Any) -> None:
    card = write_card(dataclasses.replace(manifest, task=make_task(kind)))
    assert posted(card) == {"model": manifest.name, "input": [item]}
    assert f"/v1/{route} " in card


def test_fields_with_quotes_make_a_line_that_a_shell_can_run(manifest: Manifest, make_task: MakeTask) -> None:
    fields = ('it\'s "one"', "två; rm -rf")
    card = write_card(dataclasses.replace(manifest, task=make_task("text-classification", text_fields=fields)))
    assert posted(card)["input"] == [dict.fromkeys(fields, "...")]


def test_the_commands_name_the_package_and_its_backbone(manifest: Manifest) -> None:
    card = write_card(manifest)
    assert f"--backbone {manifest.backbone.id} --hub HUB --task {manifest.name}@{manifest.version}" in card
    assert f"sparsehub materialize {manifest.name}@{manifest.version}" in card


def test_the_metrics_are_a_table_with_gaps(manifest: Manifest, make_task: MakeTask) -> None:
    task = make_task("text-classification", metrics=("accuracy", "macro_f1", "unused"))
    metrics = {"validation": {"accuracy": 0.5, "macro_f1": 0.25}, "test": {"accuracy": 1.0}}
    card = write_card(dataclasses.replace(manifest, task=task, metrics=metrics))
    assert "| split | accuracy | macro_f1 |\n|---|---|---|\n" in card
    assert "| validation | 0.5000 | 0.2500 |\n| test | 1.0000 |  |" in card
    assert "## Metrics" not in write_card(dataclasses.replace(manifest, metrics={}))


def test_labels_are_listed_up_to_a_limit(manifest: Manifest, make_task: MakeTask) -> None:
    few = write_card(manifest)
    assert "- 3 labels: bad, so so, good" in few
    many = make_task("text-classification", labels=tuple(f"l{i}" for i in range(140)))
    card = write_card(dataclasses.replace(manifest, task=many))
    assert "140 labels" in card and "l99 and 40 more" in card and "l100" not in card
    choices = write_card(dataclasses.replace(manifest, task=make_task("multiple-choice")))
    assert "- 2 choices: first, second" in choices
    assert "labels" not in write_card(dataclasses.replace(manifest, task=make_task("regression"))).split("## How")[0]


def test_how_it_was_made_is_told_without_the_seconds(manifest: Manifest) -> None:
    training = {"seed": 7, "seconds": {"training": 99.5}, "data": {"train": {"source": "a.csv", "rows": 5}}}
    card = write_card(dataclasses.replace(manifest, training=training))
    assert "- seed: 7" in card and "- data: train source a.csv; rows 5" in card
    assert "99.5" not in card
    assert manifest.backbone.fingerprint in card


def test_the_card_needs_the_manifest_alone_and_is_always_the_same(manifest: Manifest) -> None:
    assert write_card(manifest) == write_card(dataclasses.replace(manifest))
    assert write_card(manifest).endswith("\n")
