"""`sparsehub evaluate --weights`: what a task loses on quantised weights, printed, and written on a package's card."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparsehub import Engine, load_backbone
from sparsehub.api.evaluate import quantised_record
from sparsehub.api.quantised import quantised_outputs
from sparsehub.backbone import open_checkpoint
from sparsehub.cli.evaluate import QUANTISED_WEIGHTS
from sparsehub.engine.base_weights import FLOAT, WEIGHTS
from sparsehub.errors import UsageError
from sparsehub.package import read_manifest, read_package
from sparsehub.package.card import render_card
from sparsehub.package.html_report import render_report
from sparsehub.package.summary import summarize
from sparsehub.package.task_spec import HeadSpec
from sparsehub.training.data import load_split

WORDS = ["the fox", "a lazy dog", "rain", "the quick brown fox jumps", "dog dog", "it rains a lot on the lazy fox"]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    lines = [{"text": text, "label": f"label{i % 3}"} for i, text in enumerate(WORDS)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def softmax(logits: Any) -> Any:
    grown = np.exp(logits - logits.max(-1, keepdims=True))
    return grown / grown.sum(-1, keepdims=True)


@pytest.mark.parametrize("head", [None, HeadSpec("linear", "mean", normalize=True, pair="joint")])
def test_it_measures_what_an_endpoint_answers(tiny_tasks: Any, rows: Path, head: Any) -> None:
    package = read_package(tiny_tasks.write("three", head=head))
    split = load_split(package.manifest.task, str(rows))
    found = quantised_outputs(package, split, open_checkpoint(str(tiny_tasks.folder)), "int8")
    engine = Engine(load_backbone(str(tiny_tasks.folder)), weights="int8", allow_quantised=True, check_seconds=0)
    engine.add(package)
    for row, logits in zip(found.split.rows, found.logits, strict=True):
        (pending,) = engine.classify("three", [row["text"]]).futures
        while not pending.done():
            engine.step()
        np.testing.assert_allclose(softmax(logits), pending.result().scores, atol=1e-4)


@pytest.mark.parametrize(
    "kind, line",
    [
        ("token-classification", {"text": ["the", "fox"], "label": ["label0", "label1"]}),
        ("regression", {"text": "the fox", "label": 0.5}),
        ("multi-label-classification", {"text": "the fox", "label": ["label0"]}),
        ("multiple-choice", {"ask": "the", "choice1": "fox", "choice2": "dog", "label": "choice1"}),
    ],
)
def test_every_kind_can_be_measured(run: Any, tiny_tasks: Any, tmp_path: Path, kind: str, line: dict[str, Any]) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text((json.dumps(line) + "\n") * 3)
    options: dict[str, Any] = {"fields": ("ask",)} if kind == "multiple-choice" else {}
    package = tiny_tasks.write("one", kind, **options)
    asked = ("evaluate", package, "--test", rows, "--backbone", tiny_tasks.folder, "--weights", "int8")
    done = run(*asked, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["quantised"]["metrics"].keys() == found["metrics"].keys() and found["written"] is None
    assert run(*asked).code == 0


def test_the_scores_go_into_a_package_and_on_its_card(
    run: Any, suite: Mapping[str, Path], tiny_tasks: Any, rows: Path, tmp_path: Path
) -> None:
    package, out = suite["three"], tmp_path / "measured"
    asked = ("evaluate", package, "--test", rows, "--backbone", tiny_tasks.folder)
    done = run(*asked, "--weights", "int8", "--out", out)
    assert done.code == 0, done.err
    assert "on int8 weights" in done.out and "than on the weights as stored, worse on" in done.out
    before, after = read_manifest(package), read_manifest(out)
    assert f"written to {out}: {after.digest}" in done.out and after.digest != before.digest
    told = after.training["quantised"]["int8"]
    assert told["rows"] == len(WORDS) and told["source"] == "rows.jsonl" and "McNemar" in told["test"]
    for name in ("delta.safetensors", "head.safetensors"):
        assert after.files[name] == before.files[name] and (package / name).exists()
    kept = {"training": before.training, "files": before.files}
    assert dataclasses.replace(after, **kept) == before, "nothing else is said of it"
    card = (out / "README.md").read_text()
    assert "## On int8 weights" in card and f"| int8 | {told['metrics']['accuracy']:.4f} |" in card
    assert "- quantised" not in card and "6 rows of rows.jsonl" in card
    assert "On int8 weights</h2>" in render_report(summarize(after), None)
    assert "on int8 weights: 6 rows of rows.jsonl" in run("inspect", out).out
    again = run("evaluate", out, *asked[2:], "--weights", "int8", "--json")
    assert json.loads(again.out)["quantised"]["metrics"] == told["metrics"]


def test_a_mistake_is_one_line(
    run: Any, suite: Mapping[str, Path], tiny_tasks: Any, rows: Path, tmp_path: Path
) -> None:
    asked = ("evaluate", suite["three"], "--test", rows, "--backbone", tiny_tasks.folder)
    assert "say on which: --weights int8" in run(*asked, "--out", tmp_path / "out").err
    assert "unknown weights 'int9', did you mean 'int8'?" in run(*asked, "--weights", "int9").err
    taken = run(*asked, "--weights", "int8", "--out", tmp_path)
    assert taken.code == 2 and "measuring" not in taken.err, "nothing is measured in vain"
    assert set(QUANTISED_WEIGHTS) == set(WEIGHTS) - {FLOAT}


def test_a_record_needs_a_measurement(tiny_tasks: Any, rows: Path) -> None:
    from sparsehub.api.evaluate import evaluate

    package = read_package(tiny_tasks.write("three"))
    split = load_split(package.manifest.task, str(rows))
    with pytest.raises(UsageError, match="was not evaluated on quantised weights"):
        quantised_record(evaluate(package, split, open_checkpoint(str(tiny_tasks.folder))), "rows")


@pytest.mark.parametrize(
    "record",
    [
        "text",
        {"int8": {"rows": 3}},
        {"x" * 999: {"source": "a", "rows": 1, "exact": {}, "metrics": {}}},
        {"int8": {"source": "a" * 999, "rows": 1, "exact": {}, "metrics": {}}},
        {"int8": {"source": "a", "rows": 1, "exact": {"accuracy": 1e99}, "metrics": {}}},
        {"int8": {"source": "a", "rows": 1, "exact": {}, "metrics": {str(i): 0.0 for i in range(99)}}},
        {str(i): {"source": "a", "rows": 1, "exact": {}, "metrics": {}} for i in range(99)},
    ],
)
def test_a_record_that_cannot_be_shown_is_left_out(tiny_tasks: Any, record: Any) -> None:
    manifest = read_manifest(tiny_tasks.write("three"))
    summary = summarize(dataclasses.replace(manifest, training={"quantised": record}))
    assert not summary.quantised and "## On" not in render_card(summary)


def test_a_record_by_anybody_is_escaped(tiny_tasks: Any) -> None:
    manifest = read_manifest(tiny_tasks.write("three"))
    hostile = {"source": "<script>|*x*", "rows": 1, "exact": {}, "metrics": {"<b>|": 1.0}, "test": "<i>|"}
    summary = summarize(dataclasses.replace(manifest, training={"quantised": {"<u>|": hostile}}))
    for page in (render_card(summary).split("---\n", 2)[2], render_report(summary, None)):
        assert not any(tag in page for tag in ("<script>", "<b>", "<i>|", "<u>"))
