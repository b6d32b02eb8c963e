"""What a package says of its run and of where its task is right: read strictly, shown on card, page and terminal."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from PIL import Image

from sparsehub.package import Manifest, read_manifest
from sparsehub.package.card import render_card
from sparsehub.package.html_report import _shade, render_report
from sparsehub.package.plots import draw_pictures
from sparsehub.package.results import (
    Example,
    LabelScores,
    LearningCurve,
    MixedUp,
    SplitResults,
    learning_curve_of,
    results_of,
    stated,
)
from sparsehub.package.summary import PackageSummary, summarize
from sparsehub.package.task_spec import TaskSpec

MakeTask = Callable[..., TaskSpec]
CURVE = LearningCurve(
    training_loss=((1.0, 0.9), (2.0, 0.5), (3.0, 0.4)),
    validation_loss=((1.0, 0.8), (2.0, 0.6), (3.0, 0.7)),
    metric="accuracy",
    scores=((1.0, 0.7), (2.0, 0.8), (3.0, 0.75)),
    kept=2.0,
)
LABELS = (
    LabelScores("bad", 0.9, 0.75, 0.818182, 40),
    LabelScores("so so", 0.5, 0.6, 0.545455, 10),
    LabelScores("good", 0.875, 0.7, 0.777778, 50),
)
RESULTS = SplitResults("test", labels=LABELS, confusion=((30, 6, 4), (3, 6, 1), (1, 14, 35)))


@pytest.fixture
def manifest(folder: Any, make_task: MakeTask) -> Manifest:
    return dataclasses.replace(read_manifest(folder), task=make_task("text-classification"))


def told(manifest: Manifest, results: SplitResults | None = RESULTS, curve: LearningCurve | None = CURVE) -> Manifest:
    """The manifest as training writes it, and as it is read back."""
    found = {"learning_curve": curve, "results": results}
    training = {name: stated(value) for name, value in found.items() if value is not None}
    training["baselines"] = {"validation": {"probe": {"accuracy": 0.65}, "majority": {"accuracy": 0.5}}}
    return dataclasses.replace(manifest, training=json.loads(json.dumps(training)))


def summary(manifest: Manifest, *found: Any) -> PackageSummary:
    return summarize(told(manifest, *found))


def test_what_is_written_is_read_back(manifest: Manifest) -> None:
    found = told(manifest)
    assert learning_curve_of(found.training) == CURVE
    assert results_of(found.training, found.task) == RESULTS
    assert learning_curve_of({}) is None and results_of({}, found.task) is None
    assert summarize(found).starts == {"probe": 0.65}


@pytest.mark.parametrize(
    "spoilt",
    [
        {"results": "much"},
        {"results": {"split": 3}},
        {"results": {"split": "test", "more": 1}},
        {"results": {"split": "test", "confusion": [[1, 2], [3, 4]]}},
        {"results": {"split": "test", "confusion": [[1, 2, 3]] * 2}},
        {"results": {"split": "test", "confusion": [[-1, 2, 3]] * 3}},
        {"results": {"split": "test", "predicted": [[1.0]]}},
        {"results": {"split": "test", "predicted": [[1.0, 1e300]]}},
        {"results": {"split": "test", "predicted": [[1.0, 1.0]] * 1000}},
        {"results": {"split": "test", "labels": [{"label": "a"}]}},
        {"results": {"split": "test", "mixed_up": [{"label": "a" * 1001, "taken_for": "b", "rows": 1}]}},
        {"results": {"split": "t", "examples": [{"text": "a" * 1001, "expected": "", "given": "", "right": True}]}},
        {"learning_curve": {"training_loss": [[1.0, 2.0, 3.0]]}},
        {"learning_curve": {"training_loss": [[1.0, "x"]]}},
        {"learning_curve": {"scores": [[1.0, 1e200]], "metric": "accuracy"}},
        {"learning_curve": {"scores": [[1.0, 1.0]], "kept": 1e300}},
        {"learning_curve": {}},
    ],
    ids=str,
)
def test_what_has_another_form_is_left_out(manifest: Manifest, spoilt: dict[str, Any]) -> None:
    package = summarize(dataclasses.replace(manifest, training=spoilt))
    assert (package.learning_curve, package.results) == (None, None)
    assert "## Where it is right" not in render_card(package)
    assert not {"results", "learning_curve"} & set(package.training)


def test_the_card_has_the_scores_of_every_label_and_the_pictures(manifest: Manifest) -> None:
    package = summary(manifest)
    pictures = draw_pictures(package, None)
    assert set(pictures) == {"learning_curve.png", "confusion.png", "density.png"}
    card = render_card(package, pictures)
    assert "| label | precision | recall | F1 | rows |" in card and "| so so | 0.500 | 0.600 | 0.545 | 10 |" in card
    assert "](learning_curve.png)" in card and "](confusion.png)" in card
    assert "## Examples" not in card


def test_of_many_labels_the_worst_are_shown(manifest: Manifest, make_task: MakeTask) -> None:
    labels = tuple(LabelScores(f"l{i}", 0.5, 0.5, i / 100, 3) for i in range(60))
    results = SplitResults("test", labels=labels, mixed_up=(MixedUp("l1", "l2", 9),))
    task = make_task("text-classification", labels=tuple(its.label for its in labels))
    package = summary(dataclasses.replace(manifest, task=task), results)
    card, page = render_card(package), render_report(package, None)
    assert "the 30 of 60 labels with the lowest F1" in card and "| l29 |" in card and "| l30 |" not in card
    assert "| l1 | l2 | 9 |" in card
    assert "The 30 of 60 labels with the lowest F1." in page and "<td>l2</td>" in page


def test_a_regression_has_its_predictions(manifest: Manifest, make_task: MakeTask) -> None:
    results = SplitResults("test", predicted=((0.0, 0.1), (0.5, 0.4), (1.0, 0.7)))
    package = summary(dataclasses.replace(manifest, task=make_task("regression")), results, None)
    pictures = draw_pictures(package, None)
    assert set(pictures) == {"predictions.png", "density.png"}
    card = render_card(package, pictures)
    assert "](predictions.png)" in card and "On the rows of `test`.\n\n![Predicted" in card
    assert render_report(package, None).count("<circle") == 3


def test_examples_are_shown_as_they_stand(manifest: Manifest) -> None:
    text = "a *bold* | [link](x) `code` <script>"
    examples = (Example(text, "good", "good", True), Example("dull", "bad", "so so", False))
    package = summary(manifest, dataclasses.replace(RESULTS, examples=examples))
    card, page = render_card(package), render_report(package, None)
    assert r"| a \*bold\* &#124; \[link\](x) \`code\` &lt;script> | good | good | right |" in card
    assert "| dull | bad | so so | wrong |" in card
    assert "a *bold* | [link](x) `code` &lt;script&gt;" in page and "<script>" not in page


def test_examples_of_a_regression_are_near_or_far(manifest: Manifest, make_task: MakeTask) -> None:
    examples = (Example("close", "1", "1.003", True), Example("off", "4", "1.900", False))
    results = SplitResults("test", predicted=((1.0, 1.003), (4.0, 1.9)), examples=examples)
    package = summary(dataclasses.replace(manifest, task=make_task("regression")), results, None)
    card = render_card(package)
    assert "| close | 1 | 1.003 | near |" in card and "| off | 4 | 1.900 | far |" in card
    assert "<td>near</td>" in render_report(package, None)


def test_the_page_draws_the_run_and_the_matrix(manifest: Manifest) -> None:
    page = render_report(summary(manifest), None)
    assert page.count("<polyline") == 4  # two losses, the score, the probe
    assert "The package is of epoch 2." in page and "probe 0.650" in page
    assert 'title="75% of 40">30</td>' in page


@pytest.mark.parametrize("label", ["$\\frac", "a" * 200, "日本", "\x1b[31m", "_"])
def test_every_label_can_be_drawn(manifest: Manifest, make_task: MakeTask, label: str) -> None:
    task = make_task("text-classification", labels=(label, "so so", "good"))
    curve = dataclasses.replace(CURVE, metric=label)
    pictures = draw_pictures(summary(dataclasses.replace(manifest, task=task), RESULTS, curve), None)
    for data in pictures.values():
        width, height = Image.open(io.BytesIO(data)).size
        assert width > 250 and height > 200 and len(data) < 60_000


def test_one_point_and_equal_numbers_can_be_drawn(manifest: Manifest, make_task: MakeTask) -> None:
    curve = LearningCurve(training_loss=((1.0, 0.5),), metric="mse")
    results = SplitResults("test", predicted=((1.0, 1.0), (1.0, 1.0)))
    package = summary(dataclasses.replace(manifest, task=make_task("regression")), results, curve)
    assert {"learning_curve.png", "predictions.png"} <= set(draw_pictures(package, None))
    assert "<circle" in render_report(package, None)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_cell_of_any_shade_can_be_read(manifest: Manifest, dark: bool) -> None:
    page = render_report(summary(manifest), None)
    ground = re.findall(r"background:(#[0-9a-f]{3,6})[;}]", page)
    colours = dict(re.findall(r"--(heat|faint|strong):([^;}]+)", page.split("prefers-color-scheme:dark")[dark]))
    heat, below = [int(part) for part in colours["heat"].split()], _channels("#12181d" if dark else "#fff")
    assert ("#12181d" if dark else "#fff") in ground
    for part in range(101):
        share, ink = re.match(r"background:rgb\(var\(--heat\)/(.+)\);color:(.+)", _shade(part / 100)).groups()
        ink = re.sub(r"var\(--(\w+)\)", lambda found: colours[found[1]], ink)
        mixed = [low + (high - low) * float(share) for low, high in zip(below, heat, strict=True)]
        lights = sorted((_luminance(mixed), _luminance(_channels(ink))))
        assert (lights[1] + 0.05) / (lights[0] + 0.05) >= 4.5, part


def _channels(colour: str) -> list[float]:
    digits = colour[1:] if len(colour) == 7 else "".join(digit * 2 for digit in colour[1:])
    return [int(digits[i : i + 2], 16) for i in (0, 2, 4)]


def _luminance(channels: Sequence[float]) -> float:
    """The relative luminance of WCAG 2."""
    parts = [c / 255 / 12.92 if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]
