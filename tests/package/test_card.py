from __future__ import annotations

import dataclasses
import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sparsehub.package import Manifest, read_manifest
from sparsehub.package.card import render_card
from sparsehub.package.manifest import Lineage, Parent
from sparsehub.package.summary import summarize
from sparsehub.package.task_spec import TaskSpec
from sparsehub.package.validation import validate_attachment

DIGEST = "sha256:" + "a" * 64
GOLDEN = Path(__file__).parents[1] / "golden" / "package"
MakeTask = Callable[..., TaskSpec]


@pytest.fixture
def manifest(make_task: MakeTask) -> Manifest:
    return dataclasses.replace(read_manifest(GOLDEN), task=make_task("text-classification"))


def card_of(manifest: Manifest, pictures: tuple[str, ...] = ()) -> str:
    return render_card(summarize(manifest), pictures)


def posted(card: str) -> Any:
    """What the shell line of the card would send."""
    (line,) = (line for line in card.splitlines() if line.startswith("curl "))
    words = shlex.split(line)
    return json.loads(words[words.index("-d") + 1])


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
    card = card_of(dataclasses.replace(manifest, task=make_task(kind)))
    assert posted(card) == {"model": manifest.name, "input": [item]}
    assert f"/v1/{route} " in card


def test_fields_with_quotes_make_a_line_that_a_shell_can_run(manifest: Manifest, make_task: MakeTask) -> None:
    fields = ('it\'s "one"', "två; rm -rf")
    card = card_of(dataclasses.replace(manifest, task=make_task("text-classification", text_fields=fields)))
    assert posted(card)["input"] == [dict.fromkeys(fields, "...")]


def test_the_commands_name_the_package_and_its_backbone(manifest: Manifest) -> None:
    card = card_of(manifest)
    assert f"--backbone {manifest.backbone.id} --hub HUB --task {manifest.name}@{manifest.version}" in card
    assert f"sparsehub materialize {manifest.name}@{manifest.version}" in card


def test_the_metrics_are_a_table_with_gaps(manifest: Manifest, make_task: MakeTask) -> None:
    task = make_task("text-classification", metrics=("accuracy", "macro_f1", "unused"))
    metrics = {"validation": {"accuracy": 0.5, "macro_f1": 0.25}, "test": {"accuracy": 1.0}}
    card = card_of(dataclasses.replace(manifest, task=task, metrics=metrics))
    assert "| split | data | accuracy | macro_f1 |\n|---|---|---|---|\n" in card
    assert "| validation |  | 0.5000 | 0.2500 |\n| test |  | 1.0000 |  |" in card
    assert "## Metrics" not in card_of(dataclasses.replace(manifest, metrics={}))


def test_labels_are_listed_up_to_a_limit(manifest: Manifest, make_task: MakeTask) -> None:
    few = card_of(manifest)
    assert "- 3 labels: bad, so so, good" in few
    many = make_task("text-classification", labels=tuple(f"l{i}" for i in range(140)))
    card = card_of(dataclasses.replace(manifest, task=many))
    assert "140 labels" in card and "l99 and 40 more" in card and "l100" not in card
    choices = card_of(dataclasses.replace(manifest, task=make_task("multiple-choice")))
    assert "- 2 choices: first, second" in choices
    assert "labels" not in card_of(dataclasses.replace(manifest, task=make_task("regression"))).split("## How")[0]


def test_how_it_was_made_is_told_without_the_seconds(manifest: Manifest) -> None:
    training = {"seed": 7, "seconds": {"training": 99.5}, "data": {"train": {"source": "a.csv", "rows": 5}}}
    card = card_of(dataclasses.replace(manifest, training=training))
    assert "- seed: 7" in card and "- data: train: 5 rows of a.csv" in card
    assert "99.5" not in card
    assert manifest.backbone.fingerprint in card


def test_the_card_needs_the_manifest_alone_and_is_always_the_same(manifest: Manifest) -> None:
    assert card_of(manifest) == card_of(dataclasses.replace(manifest))
    assert card_of(manifest).endswith("\n")


def test_the_card_shows_its_pictures_where_it_has_them(manifest: Manifest) -> None:
    card = card_of(manifest, ("density.png", "values.png"))
    assert "](density.png)" in card and "](values.png)" in card
    assert "](" not in card_of(manifest)


def test_sizes_stand_beside_the_backbone_and_lora(manifest: Manifest) -> None:
    card = card_of(manifest)
    assert f"| delta | {manifest.files['delta.safetensors'].size} B |" in card
    assert "the whole backbone | 781.3 KiB" in card
    assert "## Size" not in card_of(dataclasses.replace(manifest, files={}))


def test_metrics_name_their_data_and_rows(manifest: Manifest) -> None:
    data = {"validation": {"source": "dev.jsonl", "rows": 1200}}
    task = dataclasses.replace(manifest.task, metrics=("accuracy",))
    card = card_of(dataclasses.replace(manifest, task=task, training={"data": data}))
    assert "| validation | dev.jsonl, 1,200 rows | 0.8750 |" in card


def test_lineage_is_told(manifest: Manifest) -> None:
    lineage = Lineage((Parent("topic", "1.0.0", DIGEST, 0.5),), "owner/tuned", DIGEST)
    card = card_of(dataclasses.replace(manifest, lineage=lineage))
    assert f"- merged from: `topic@1.0.0` times 0.5 (`{DIGEST}`)" in card
    assert f"- extracted from: `owner/tuned` (`{DIGEST}`)" in card


def test_limits_and_licence_are_stated_and_never_made_up(manifest: Manifest) -> None:
    card = card_of(dataclasses.replace(manifest, license=""))
    assert "None is stated: ask whoever published it." in card
    assert "was measured on validation alone" in card
    assert "was not measured" in card_of(dataclasses.replace(manifest, metrics={}))


@pytest.mark.parametrize("text", ["a|b", "<script>alert(1)</script>", "two\nlines", "\x1b[31mred", "`code`", "\x9b"])
def test_text_from_elsewhere_breaks_neither_the_card_nor_a_terminal(
    manifest: Manifest, make_task: MakeTask, text: str
) -> None:
    spoilt = dataclasses.replace(
        manifest,
        task=make_task("text-classification", labels=(text, "other"), text_fields=(text,)),
        backbone=dataclasses.replace(manifest.backbone, id=text, architecture=text),
        license=text,
        training={text: text, "data": {"validation": {"source": text}}},
        metrics={"validation": {"accuracy": 0.5}, text: {"accuracy": 0.5}},
    )
    card = card_of(spoilt)
    validate_attachment("README.md", card.encode())
    body = card.split("---\n", 2)[2]
    assert "<script>" not in re.sub(r"```.*?```|`[^`\n]*`", "", body, flags=re.DOTALL)
    rows = [line for line in card.splitlines() if line.startswith("|") and ("0.5000" in line or "split" in line)]
    assert len({line.count("|") for line in rows}) == 1


def test_a_metrics_name_does_not_break_the_table(manifest: Manifest, make_task: MakeTask) -> None:
    task, metrics = make_task("text-classification", metrics=("a|<b>",)), {"test": {"a|<b>": 0.5}}
    card = card_of(dataclasses.replace(manifest, task=task, metrics=metrics))
    assert "| split | data | a&#124;&lt;b> |\n|---|---|---|\n| test |  | 0.5000 |\n" in card
