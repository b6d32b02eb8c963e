"""Several labels a row: how data says them, metrics as scikit-learn has them, thresholds, the probe, a whole run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sparsehub.errors import DataError, UsageError
from sparsehub.package import read_package
from sparsehub.package.manifest_builder import metric_names
from sparsehub.package.task_spec import EVEN, MULTI_LABEL, PROBLEM_TYPES, HeadSpec, TaskSpec
from sparsehub.training import TrainConfig, train
from sparsehub.training.data import TaskData
from sparsehub.training.fisher import _without_padding
from sparsehub.training.metrics import compute, majority, mean_loss
from sparsehub.training.multi_label import SEEN, with_thresholds
from sparsehub.training.probe import SMALL, Frozen, fit_probe

Load = Callable[..., TaskData]
Write = Callable[..., str]
Configure = Callable[..., TrainConfig]
LISTS = [
    {"text": "a", "label": ["red", "blue"]},
    {"text": "b", "label": []},
    {"text": "c", "label": ["green"]},
    {"text": "d", "label": ["blue"]},
]
BITS = [[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]  # blue, green, red


def spec(labels: int = 3) -> TaskSpec:
    names, metrics = tuple("abcdefgh"[:labels]), metric_names(MULTI_LABEL, labels)
    head = HeadSpec("linear", "mean", False, "joint")
    return TaskSpec(MULTI_LABEL, names, PROBLEM_TYPES[MULTI_LABEL], ("text",), "label", 24, metrics, (),
                    (EVEN,) * labels, head)  # fmt: skip


def drawn(rows: int, labels: int, seed: int = 0) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Logits that know something of the targets; the last label is rare."""
    numbers = np.random.default_rng(seed)
    targets = (numbers.random((rows, labels)) < np.linspace(0.5, 0.12, labels)).astype(float)
    return (2 * targets - 2.5 + numbers.normal(size=targets.shape)).astype(np.float32), targets


def columns(values: dict[bool, Any]) -> list[dict[str, Any]]:
    names = ("blue", "green", "red")
    return [
        {"text": row["text"], **{name: values[bool(bit)] for name, bit in zip(names, bits, strict=True)}}
        for row, bits in zip(LISTS, BITS, strict=True)
    ]


def test_lists_and_columns_say_the_same(load: Load, write_rows: Write, tmp_path: Path) -> None:
    lists = load(write_rows(LISTS), MULTI_LABEL)
    assert (lists.task.labels, list(lists.train.targets)) == (("blue", "green", "red"), BITS)
    assert lists.task.thresholds == (EVEN,) * 3
    for values in ({True: 1, False: 0}, {True: True, False: False}, {True: "1", False: "0"}, {True: 1.0, False: 0.0}):
        data = load(write_rows(columns(values)), MULTI_LABEL, label="blue,green,red")
        assert (data.task.labels, list(data.train.targets)) == (lists.task.labels, BITS), values
    table = tmp_path / "rows.csv"
    table.write_text("text;blue;green;red\na;1;0;1\nb;0;0;0\nc;0;1;0\nd;True;FALSE;0\n")
    assert list(load(str(table), MULTI_LABEL, label="blue,green,red").train.targets) == BITS
    named = load(write_rows(LISTS), MULTI_LABEL, labels=("red", "green", "blue"))
    assert list(named.train.targets) == [bits[::-1] for bits in BITS]


def test_parquet_lists_of_declared_labels_have_their_names(load: Load, tmp_path: Path) -> None:
    import datasets

    kinds = {"text": datasets.Value("string"), "label": datasets.List(datasets.ClassLabel(names=["zebra", "ape"]))}
    made = datasets.Dataset.from_dict({"text": ["x", "y", "z"], "label": [[0, 1], [], [1]]}, datasets.Features(kinds))
    made.to_parquet(tmp_path / "rows.parquet")
    data = load(str(tmp_path / "rows.parquet"), MULTI_LABEL)
    assert (data.task.labels, list(data.train.targets)) == (("zebra", "ape"), [[1.0, 1.0], [0.0, 0.0], [0.0, 1.0]])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["red;blue", "red"], "holds no labels.*no list of labels.*a list of labels in JSON"),
        ([["red", "blue"], None], "row 2: .*an empty list says"),
        ([["red", "blue"], ["red", "red"]], "row 2: .*names each once"),
        ([[1, 0, 1], [0, 0, 1]], "lists of 0 and 1.*--label one,two,three"),
        ([["red", "blue"], [{"red": 1}]], "holds no labels.*give the likeliest name"),
        ([["red"], ["red"]], "at least two labels"),
    ],
)
def test_what_is_no_list_of_labels_is_refused(load: Load, write_rows: Write, labels: list[Any], message: str) -> None:
    rows = [{"text": "a", "label": label} for label in labels]
    with pytest.raises(DataError, match=message):
        load(write_rows(rows), MULTI_LABEL)


@pytest.mark.parametrize("value", [2, 0.5, "yes", None, "", [1]])
def test_a_column_that_is_neither_0_nor_1_is_refused(load: Load, write_rows: Write, value: Any) -> None:
    rows = [{"text": "a", "blue": 1, "red": 0}, {"text": "b", "blue": value, "red": 0}]
    with pytest.raises(DataError, match=r"row 2: the field 'blue' does not say.*expected: 0 or 1"):
        load(write_rows(rows), MULTI_LABEL, label="blue,red")


def test_two_numbers_are_no_vector_and_columns_are_the_labels(load: Load, write_rows: Write) -> None:
    """[0, 1] may be the places of both labels, or mean the second alone."""
    with pytest.raises(DataError, match="names each once"):
        load(write_rows([{"text": "a", "label": [0, 1]}]), MULTI_LABEL, labels=("x", "y"))
    with pytest.raises(UsageError, match="these are the labels"):
        load(write_rows(columns({True: 1, False: 0})), MULTI_LABEL, label="blue,red", labels=("x", "y"))
    with pytest.raises(DataError, match="has no field 'rot'"):
        load(write_rows(columns({True: 1, False: 0})), MULTI_LABEL, label="blue,rot")


def test_metrics_are_those_of_scikit_learn() -> None:
    from sklearn.metrics import average_precision_score, f1_score

    logits, targets = drawn(400, 5)
    task = dataclasses.replace(spec(5), thresholds=(0.5, 0.3, 0.2, 0.4, 0.1))
    scores = 1 / (1 + np.exp(-logits.astype(np.float64)))
    guesses = scores >= np.array(task.thresholds)
    assert compute(task, logits, targets) == pytest.approx(
        {
            "average_precision": average_precision_score(targets, scores, average="macro"),
            "micro_f1": f1_score(targets, guesses, average="micro"),
            "macro_f1": f1_score(targets, guesses, average="macro"),
        },
        abs=2e-6,
    )
    both = torch.from_numpy(logits).double(), torch.from_numpy(targets)
    loss = torch.nn.functional.binary_cross_entropy_with_logits(*both)
    assert mean_loss(task, logits, targets) == pytest.approx(float(loss), abs=1e-6)


def test_a_label_that_no_row_has_counts_in_no_average_precision() -> None:
    logits, targets = drawn(50, 3)
    targets[:, 1] = 0
    alone = compute(spec(2), logits[:, [0, 2]], targets[:, [0, 2]])
    assert compute(spec(3), logits, targets)["average_precision"] == alone["average_precision"]
    assert compute(spec(3), logits, np.zeros_like(targets)) == dict.fromkeys(metric_names(MULTI_LABEL, 3), 0.0)


def test_always_the_commonest_label_is_the_baseline() -> None:
    train_rows, test = [[0.0, 1.0], [1.0, 1.0], [0.0, 0.0]], [[1.0, 1.0], [0.0, 1.0], [1.0, 0.0]]
    found = majority(spec(2), train_rows, test)
    assert found["micro_f1"] == pytest.approx(2 * 2 / (3 + 4), abs=1e-6)


def test_a_threshold_is_the_best_of_all_that_there_are() -> None:
    """By brute force over every cut between two scores; and where two do as well, the one next to a half."""
    from sklearn.metrics import f1_score

    logits, targets = drawn(300, 4, seed=3)
    found = with_thresholds(spec(4), logits, targets).thresholds
    scores = torch.sigmoid(torch.from_numpy(logits)).double().numpy()
    for place, threshold in enumerate(found):
        cuts = np.concatenate([[0.0], np.sort(scores[:, place])])
        best = max(f1_score(targets[:, place], scores[:, place] >= cut) for cut in cuts)
        assert f1_score(targets[:, place], scores[:, place] >= threshold) == pytest.approx(best)
    apart = np.array([[-4.0]] * 20 + [[4.0]] * 20, dtype=np.float32), np.array([[0.0]] * 20 + [[1.0]] * 20)
    assert with_thresholds(spec(1), *apart).thresholds == pytest.approx((0.5,))


def test_a_label_that_few_rows_have_or_lack_keeps_a_half() -> None:
    targets = np.zeros((200, 3))
    targets[: SEEN - 1, 0], targets[:, 1], targets[:SEEN, 2] = 1, 1, 1
    targets[: SEEN - 1, 1] = 0
    logits = (targets * 4 - 8).astype(np.float32)
    found = with_thresholds(spec(3), logits, targets).thresholds
    assert found[:2] == (EVEN, EVEN)
    assert found[2] < 0.02


def test_the_probe_is_a_logistic_regression_for_each_label() -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    numbers = np.random.default_rng(1)
    direction = numbers.normal(size=(6, 3))

    def made(rows: int) -> Frozen:
        features = numbers.normal(size=(rows, 6)) * 10.0 ** np.arange(-2, 4)
        noise = numbers.normal(size=(rows, 3))
        return Frozen(features, ((features / 10.0 ** np.arange(-2, 4)) @ direction + noise > 1).astype(float))

    train_rows, validation = made(300), made(SMALL)
    probe = fit_probe(spec(3), {"train": train_rows, "validation": validation})
    logits = validation.rows @ probe.tensors["weight"].double().numpy().T + probe.tensors["bias"].double().numpy()
    found, near = 1 / (1 + np.exp(-logits)), []
    for strength in (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0):
        theirs = make_pipeline(StandardScaler(), OneVsRestClassifier(LogisticRegression(C=strength, max_iter=300))).fit(
            train_rows.rows, train_rows.targets
        )
        near.append(float(np.abs(theirs.predict_proba(validation.rows) - found).max()))
    assert min(near) < 1e-3
    assert probe.metrics["validation"]["average_precision"] > 0.6
    constant = np.column_stack([np.ones(300), np.zeros(300), train_rows.targets[:, 0]])
    sure = fit_probe(spec(3), {"train": Frozen(train_rows.rows, constant)}).tensors
    assert sure["bias"][0] > 4 and sure["bias"][1] < -4 and not sure["weight"][:2].any()


def test_labels_of_a_row_are_never_cut_as_those_of_tokens_are() -> None:
    """Not even where a row has as many labels as its batch has tokens."""
    ids = torch.tensor([[5, 6, 0, 0]])
    row = {"input_ids": ids, "attention_mask": (ids > 0).long(), "labels": torch.tensor([[1.0, 0.0, 1.0, 1.0]])}
    cut = _without_padding(row)
    assert (cut["input_ids"].tolist(), cut["labels"].tolist()) == ([[5, 6]], [[1.0, 0.0, 1.0, 1.0]])


@pytest.mark.parametrize("method", ["head", "sam", "fisher"])
def test_a_run_ends_in_a_package_with_thresholds(
    make_config: Configure, write_rows: Write, tmp_path: Path, method: str
) -> None:
    rows = [
        {"text": f"{mood} {thing}", "label": [mood] * (mood != "so") + [thing]}
        for mood in ("good", "bad", "so")
        for thing in ("film", "story")
        for _ in range(10)
    ]
    source = write_rows(rows)
    density = None if method == "head" else 0.02
    result = train(
        make_config(
            MULTI_LABEL, method=method, density=density, head=None, train=source, validation=source,
            out=str(tmp_path / "out"), preload=True, calibration_batches=1, epochs=1,
        )
    )  # fmt: skip
    manifest = read_package(tmp_path / "out").manifest
    assert manifest.task.labels == ("bad", "film", "good", "story")
    assert len(manifest.task.thresholds) == 4 and manifest.task.thresholds != (EVEN,) * 4
    assert manifest.metrics["validation"]["micro_f1"] > 0.9
    baselines = manifest.training["baselines"]["validation"]
    assert set(baselines) == {"majority", "probe"}
    assert baselines["probe"]["average_precision"] > baselines["majority"]["average_precision"]
    assert result.manifest == manifest
