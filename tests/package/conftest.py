"""Tasks of every kind and rows for them; whole packages on a tiny backbone."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sparsehub.backbone import Backbone, load_backbone
from sparsehub.package import Package, read_package
from sparsehub.package.task_spec import PROBLEM_TYPES, TaskSpec

MakeTask = Callable[..., TaskSpec]
FIELDS: dict[str, dict[str, Any]] = {
    "text-classification": {"labels": ("bad", "so so", "good"), "text_fields": ("text",)},
    "multi-label-classification": {
        "labels": ("bad", "so so", "good"),
        "text_fields": ("text",),
        "thresholds": (0.5, 0.25, 0.75),
    },
    "regression": {"labels": (), "text_fields": ("text",)},
    "token-classification": {"labels": ("O", "B-NAME", "I-NAME"), "text_fields": ("words",)},
    "embedding": {"labels": (), "text_fields": ("first", "second"), "label_field": ""},
    "text-generation": {"labels": (), "text_fields": ("text",), "label_field": ""},
    "multiple-choice": {"labels": ("first", "second"), "choice_fields": ("first", "second"), "text_fields": ("ask",)},
}
TEXTS = ["a good film", "the quick brown fox jumps over the lazy dog", "awful", "angela merkel met the king"]

GOLDEN = Path(__file__).parents[1] / "golden" / "package"


@pytest.fixture(scope="session")
def make_task() -> MakeTask:
    """make_task(kind, **changes): a task of that kind."""

    def make(kind: str, **changes: Any) -> TaskSpec:
        fixed = {"kind": kind, "problem_type": PROBLEM_TYPES[kind], "label_field": "label", "metrics": ()}
        return TaskSpec(**{"max_length": 24, **fixed, **FIELDS[kind], **changes})

    return make


@pytest.fixture(scope="session")
def task_rows() -> dict[str, list[dict[str, Any]]]:
    """Four rows of several lengths, by kind."""
    single = [{"text": text} for text in TEXTS]
    return {
        "text-classification": single,
        "multi-label-classification": single,
        "regression": single,
        "token-classification": [{"words": text.split()} for text in TEXTS],
        "multiple-choice": [{"ask": text, "first": "bad", "second": "good fun to watch"} for text in TEXTS],
    }


@pytest.fixture
def bert(tiny_checkpoint: Callable[[str], Path]) -> Backbone:
    return load_backbone(str(tiny_checkpoint("bert")))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the golden package, to be spoilt."""
    return shutil.copytree(GOLDEN, tmp_path / "package")


@pytest.fixture(scope="module")
def golden() -> Package:
    """The golden package, read."""
    return read_package(GOLDEN)
