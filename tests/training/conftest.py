"""Small data sets of every kind of task, and configurations that train on them in a second or two."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

Write = Callable[..., str]
Configure = Callable[..., Any]

_GOOD = ["a good film", "this was fun", "bright and lovely", "a great cast", "lovely to watch", "good fun"]
_BAD = ["a bad film", "boring and slow", "an awful story", "a bad ending", "slow and awful", "what a boring film"]
_NAMES = {"angela", "merkel", "spain", "berlin"}
_SENTENCES = [
    "angela merkel met the king of spain in berlin",
    "the river in the north of spain never sleeps",
    "who wrote the book about berlin",
    "the king of spain met angela",
]


def _tagged(sentence: str) -> dict[str, Any]:
    words = sentence.split()
    return {"words": words, "tags": ["B-NAME" if word in _NAMES else "O" for word in words]}


_CHOICES = [
    {"question": question, "first": a, "second": b, "right": right}
    for question, a, b, right in [
        ("what a boring film", "awful", "lovely", 0),
        ("a great cast", "bad", "good", 1),
        ("this was fun", "lovely", "slow", 0),
        ("a bad ending", "fun", "awful", 1),
    ]
]
ROWS: dict[str, list[dict[str, Any]]] = {
    "text-classification": [
        {"text": text, "label": label}
        for pair in zip(_GOOD, _BAD, strict=True)
        for text, label in zip(pair, ("good", "bad"), strict=True)
    ],
    "regression": [{"text": text, "label": float(len(text)) / 10} for text in (*_GOOD, *_BAD)],
    "token-classification": [_tagged(sentence) for sentence in _SENTENCES],
    "multiple-choice": _CHOICES,
}
FIELDS: dict[str, dict[str, Any]] = {
    "text-classification": {"text": ("text",)},
    "regression": {"text": ("text",)},
    "token-classification": {"text": ("words",), "label": "tags"},
    "multiple-choice": {"text": ("question",), "choices": ("first", "second"), "label": "right"},
}


def as_jsonl(rows: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def write_rows(tmp_path: Path) -> Write:
    """write_rows(rows, name="train.jsonl"): the path of a file that holds them."""

    def write(rows: Iterable[Mapping[str, Any]], name: str = "train.jsonl") -> str:
        path = tmp_path / name
        path.write_text(as_jsonl(rows), encoding="utf-8")
        return str(path)

    return write


@pytest.fixture(scope="session")
def make_config(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Callable[[str], Path]) -> Configure:
    """make_config(kind, **changes): a few steps with a tiny BERT, the training rows also the validation."""
    from sparsehub.training import TrainConfig

    folder = tmp_path_factory.mktemp("data")
    for kind, rows in ROWS.items():
        (folder / f"{kind}.jsonl").write_text(as_jsonl(rows), encoding="utf-8")

    def make(kind: str = "text-classification", **changes: Any) -> TrainConfig:
        source = str(folder / f"{kind}.jsonl")
        small: dict[str, Any] = {
            "backbone": str(tiny_checkpoint("bert")),
            "kind": kind,
            "name": "tiny",
            "train": source,
            "validation": source,
            "out": "unused",
            "density": 0.02,
            "calibration_batches": 2,
            "epochs": 2,
            "batch_size": 4,
            "learning_rate": 1e-2,
            "max_length": 24,
            "device": "cpu",
            "value_dtype": "float32",
            **FIELDS[kind],
        }
        return TrainConfig(**{**small, **changes})

    return make
