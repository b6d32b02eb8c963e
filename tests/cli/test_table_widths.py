"""Every table fits a screen of 80, 100 or 120 columns: golden renderings, in tests/golden/cli/."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving.catalog import Catalog, CatalogEntry, CatalogTarget
from sparsehub.api.evaluate import Evaluation, ProbeScores
from sparsehub.cli import catalog, compare, evaluate, extract, hub, merge, output, present, stability
from sparsehub.cli.heat_map_names import heat_map_names
from sparsehub.convert.extract import Layer
from sparsehub.convert.merge import LayerComparison
from sparsehub.hub.listing import HubEntry
from sparsehub.package import read_package
from sparsehub.package.delta_stats import Cell, HeatMap
from sparsehub.package.results import LabelScores, SplitResults
from sparsehub.package.summary import summarize
from sparsehub.training.error_analysis import Difference, JudgedRow
from sparsehub.training.stability import Stability

GOLDEN = Path(__file__).parents[1] / "golden"
WIDTHS = (80, 100, 120)
KINDS = ("attention.key", "attention.output", "attention.query", "attention.value", "intermediate", "output")
LABELS = ("account_access", "cancel_subscription", "damaged_item", "delivery_delay", "praise", "warranty_claim")


def heat_map(stack: str = "encoder.layer") -> HeatMap:
    """Six layers of an encoder, with all kinds of matrices, biases and norms."""
    layers, kinds = tuple(f"{stack} {i}" for i in range(6)), (*KINDS, "biases", "norms")
    cells = {
        (layer, kind): Cell(10 * i + j + 1, 1000) for i, layer in enumerate(layers) for j, kind in enumerate(kinds)
    }
    return HeatMap(layers, kinds, cells, {"embeddings.word_embeddings": Cell(777, 11_000_000)})


def show_package() -> None:
    package = summarize(read_package(GOLDEN / "package").manifest)
    scores = tuple(LabelScores(label, 0.9, 0.8 - i / 10, 0.8, 8) for i, label in enumerate(LABELS))
    rows = {"accuracy": 0.8229, "macro_f1": 0.8155, "matthews": 0.8078, "average_precision": 0.75, "micro_f1": 0.5}
    first = package.metrics.splits[0]
    splits = (
        dataclasses.replace(first, split="validation", scores=rows, data="examples/support/validation.jsonl, 72 rows"),
        dataclasses.replace(first, split="test (majority)", scores={"accuracy": 0.0833}, data=""),
    )
    metrics = dataclasses.replace(package.metrics, splits=splits, measured=tuple(rows))
    shown = dataclasses.replace(package, metrics=metrics, results=SplitResults("test", scores))
    present.show_metrics(shown)
    present.show_scores(shown)


def show_listing() -> None:
    entries = [
        HubEntry("topic", "1.0.0", "d", "text-classification", "all-MiniLM-L6-v2", "f", "sam", 0.005, 113_566, 550_000,
                 {"test": {"accuracy": 0.8229}}, ("latest", "stable", "candidate-of-june")),
        HubEntry("what-a-long-name-this-task-has", "2024.10.1", "d", "multi-label-classification", "all-MiniLM-L6-v2",
                 "f", "sam", 0.02, 454_264, 1_900_000, {"validation": {"accuracy": 0.5}}),
    ]  # fmt: skip
    hub.show_entries(entries, False, "")


def show_stability() -> None:
    point = Stability(0.005, 113_566, 0.8229, (0.81, 0.83), (0.8, 0.84), 0.0123, 0.00123, 0.345, 12.0, 1.5)
    stability.show_points([point, dataclasses.replace(point, density=0.02, bound=None)], "sam on train.jsonl")


def show_catalog() -> None:
    target = CatalogTarget("1.0.0", "sha256:" + "a" * 64)
    entry = CatalogEntry(
        target, dataclasses.replace(target, version="1.1.0-candidate"), 5.0, True, 20.0, 5000.0, (target,) * 3
    )
    catalog.show_catalog(Catalog(revision=7, tasks={"a-task-with-a-long-name": entry, "topic": CatalogEntry(target)}))


def show_overlap() -> None:
    names = ["topic", "urgency", "reply-suggestion", "spam", "language", "sentiment-of-reviews"]
    compare._show_matrix(compare.SHARED, names, [[0.01 * (i + j) for j in range(6)] for i in range(6)], 0.1)


def show_confusion() -> None:
    manifest = read_package(GOLDEN / "package").manifest
    task = dataclasses.replace(manifest.task, labels=LABELS)
    package: Any = dataclasses.replace(
        read_package(GOLDEN / "package"), manifest=dataclasses.replace(manifest, task=task)
    )
    matrix = np.arange(36).reshape(6, 6)
    evaluate._show_confusion(Evaluation(package, 36, {}, matrix, []))


def show_evaluation() -> None:
    package: Any = read_package(GOLDEN / "package")
    scores = {"accuracy": 0.8229, "macro_f1": 0.8155, "matthews": 0.8078}
    rows = [JudgedRow({"text": "My parcel " + "is late " * 20}, "delivery_delay", "praise", 4.25)]
    found, gap = Evaluation(package, 1240, scores, None, rows), Difference("McNemar's exact test", 120, 79, 0.0044)
    probe = ProbeScores(4960, {name: score - 0.1 for name, score in scores.items()}, gap)
    evaluate._show_scores(found, dataclasses.replace(found, metrics=probe.metrics), probe)
    evaluate._show_gap("the probe", gap)
    evaluate._show_worst(found)


def show_layers() -> None:
    extract.show_layers([Layer(f"encoder.layer.{i}", 1_774_464, 9296 * (i + 1), 0.1 * i) for i in range(2)])
    merge.show_parts([LayerComparison(f"encoder.layer.{i}", 9296, 9000, 400 * i, 0.1 * i) for i in range(2)])


SHOWN: tuple[Callable[[], None], ...] = (
    show_package,
    lambda: present.show_heat_map(heat_map()),
    show_listing,
    show_stability,
    show_catalog,
    show_overlap,
    show_confusion,
    show_evaluation,
    show_layers,
)


def rendered(width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    monkeypatch.setattr(output.console, "width", width)
    capsys.readouterr()
    for show in SHOWN:
        show()
    return "".join(line.rstrip() + "\n" for line in capsys.readouterr().out.splitlines())


@pytest.mark.parametrize("width", WIDTHS)
def test_tables_are_as_they_were_looked_at(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = rendered(width, monkeypatch, capsys)
    assert found == (GOLDEN / "cli" / f"{width}.txt").read_text(encoding="utf-8")
    prose = ("Of the package as written", "no room for", "better on")  # goes on in the next line of a terminal
    assert [line for line in found.splitlines() if len(line) > width and not line.startswith(prose)] == []


def test_short_names_say_which_stack_where_there_are_two() -> None:
    one, two = heat_map("encoder.block"), heat_map("decoder.block")
    both = dataclasses.replace(one, layers=one.layers + two.layers, cells={**one.cells, **two.cells})
    assert list(heat_map_names(one, 90).layers.values()) == ["L0", "L1", "L2", "L3", "L4", "L5"]
    assert heat_map_names(both, 90).layers["decoder.block 3"] == "decoder.block 3"


def test_where_nothing_fits_the_kinds_with_the_fewest_entries_go_first() -> None:
    names = heat_map_names(heat_map(), 50)
    assert names.width <= 50 and list(names.kinds) == ["attention.value", "intermediate", "output", "biases", "norms"]
    assert heat_map_names(heat_map(), 3).kinds == {}
