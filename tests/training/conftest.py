"""Small data sets of every kind of task, configurations that train on them in a second or two, plain gradients."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sparsehub.backbone import Checkpoint, open_checkpoint
from sparsehub.backbone.tokenizer import load_tokenizer
from sparsehub.package.task_model import TaskModel, load_task_model
from sparsehub.package.task_spec import TaskSpec
from sparsehub.selection import SelectionRequest, select
from sparsehub.training import TrainConfig
from sparsehub.training.batches import Collator
from sparsehub.training.data import TaskData, load_data
from sparsehub.training.sparse_model import SparseModel
from sparsehub.training.trainable import candidates

Write = Callable[..., str]
Configure = Callable[..., TrainConfig]

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
    "multi-label-classification": [
        {"text": text, "label": ["good"] * (text in _GOOD) + ["a"] * (" a " in f" {text} ")} for text in (*_GOOD, *_BAD)
    ],
    "regression": [{"text": text, "label": float(len(text)) / 10} for text in (*_GOOD, *_BAD)],
    "token-classification": [_tagged(sentence) for sentence in _SENTENCES],
    "multiple-choice": _CHOICES,
}
FIELDS: dict[str, dict[str, Any]] = {
    "text-classification": {"text": ("text",)},
    "multi-label-classification": {"text": ("text",)},
    "regression": {"text": ("text",)},
    # After its first step nothing has changed yet, and a few words' F1 may be no better after the second.
    "token-classification": {"text": ("words",), "label": "tags", "metric": "accuracy"},
    "embedding": {},
    "multiple-choice": {"text": ("question",), "choices": ("first", "second"), "label": "right"},
}


@pytest.fixture(scope="module", autouse=True)
def _cheap_trainers(imports_are_no_garbage: None) -> None:
    """Nearly every test of this folder starts a Trainer."""


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
    """make_config(kind, **changes): a few steps with a tiny BERT and a head of transformers, the training rows
    also the validation."""
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
            "head": "transformers",
            **FIELDS[kind],
        }
        return TrainConfig(**{**small, **changes})

    return make


@pytest.fixture
def config(make_config: Configure, tmp_path: Path) -> TrainConfig:
    """A text classification whose package would go to a folder of the test's own."""
    return make_config(out=str(tmp_path / "out"))


def _load(train: str, kind: str = "text-classification", text: tuple[str, ...] = ("text",), **more: Any) -> TaskData:
    return load_data(TrainConfig(backbone="b", kind=kind, name="t", train=train, text=text, out="o", **more))


@pytest.fixture
def load() -> Callable[..., TaskData]:
    """load(source, kind, text, **settings): what the loader makes of it."""
    return _load


def _table(rows: list[dict[str, Any]], delimiter: str) -> str:
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def _as_file(rows: list[dict[str, Any]], path: Path) -> str:
    if path.suffix == ".parquet":
        import pandas

        pandas.DataFrame(rows).to_parquet(path)
    else:
        text = {
            ".jsonl": as_jsonl(rows),
            ".json": json.dumps(rows),
            ".csv": _table(rows, ","),
            ".tsv": _table(rows, "\t"),
        }[path.suffix]
        path.write_text(text, encoding="utf-8", newline="")
    return str(path)


@pytest.fixture
def as_file() -> Callable[[list[dict[str, Any]], Path], str]:
    """as_file(rows, path): the path of a file of the kind that its suffix says."""
    return _as_file


TASK = TaskSpec(
    "text-classification", ("bad", "good"), "single_label_classification", ("text",), "label", 24, ("accuracy",)
)
TEXTS = ["a good film", "what a boring slow story", "lovely to watch", "an awful ending", "great fun", "bad"]
Batch = Mapping[str, Tensor]


@pytest.fixture
def task() -> TaskSpec:
    return TASK


@pytest.fixture(scope="session")
def checkpoint(tiny_checkpoint: Callable[[str], Path]) -> Checkpoint:
    return open_checkpoint(str(tiny_checkpoint("bert")))


@pytest.fixture
def task_model(checkpoint: Checkpoint) -> TaskModel:
    torch.manual_seed(0)
    return load_task_model(checkpoint, TASK)


@pytest.fixture(scope="session")
def batch(checkpoint: Checkpoint) -> Batch:
    """Six rows with their labels."""
    collate = Collator(TASK, load_tokenizer(checkpoint))
    return collate([({"text": text}, 1 - i % 2) for i, text in enumerate(TEXTS)])


def _random_mask(task_model: TaskModel) -> dict[str, Tensor]:
    budget = round(0.02 * task_model.backbone.arena.numel)
    return select("random", SelectionRequest(candidates(task_model), budget, seed=3))


@pytest.fixture
def random_mask() -> Callable[[TaskModel], dict[str, Tensor]]:
    """random_mask(task_model): two in a hundred entries, always the same."""
    return _random_mask


def _dense_gradients(task_model: TaskModel, batches: list[Batch]) -> dict[str, Tensor]:
    names = dict(task_model.backbone.module.named_parameters())
    wanted = {name: names[name] for name in candidates(task_model)}
    for parameter in wanted.values():
        parameter.requires_grad_(True)
    loss = torch.stack([task_model.model(**batch).loss for batch in batches]).mean()
    found = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True)
    for parameter in wanted.values():
        parameter.requires_grad_(False)
    return {n: g if g is not None else torch.zeros_like(wanted[n]) for n, g in zip(wanted, found, strict=True)}


@pytest.fixture
def dense_gradients() -> Callable[[TaskModel, list[Batch]], dict[str, Tensor]]:
    """dense_gradients(task_model, batches): of the mean loss over the batches, through autograd alone."""
    return _dense_gradients


def _pieces(model: SparseModel, mask: Mapping[str, Tensor], flat: Tensor) -> dict[str, Tensor]:
    return dict(zip(sorted(mask), flat.split([len(mask[name]) for name in sorted(mask)]), strict=True))


@pytest.fixture
def pieces() -> Callable[[SparseModel, Mapping[str, Tensor], Tensor], dict[str, Tensor]]:
    """pieces(model, mask, flat): the value vector, or its gradient, by parameter name."""
    return _pieces


@pytest.fixture(scope="module")
def still(tiny_checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> str:
    """The tiny BERT without dropout, which every process would draw for itself."""
    folder = tmp_path_factory.mktemp("still") / "bert"
    shutil.copytree(tiny_checkpoint("bert"), folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)
