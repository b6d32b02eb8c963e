"""What a package says of where its task is right: against counts by hand, and in the package of a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from sparsehub.errors import UsageError
from sparsehub.package.results import LabelScores, learning_curve_of, results_of
from sparsehub.package.task_spec import PROBLEM_TYPES, TaskSpec
from sparsehub.training import TrainConfig, fit, train
from sparsehub.training.data import Split
from sparsehub.training.evaluation import Outputs
from sparsehub.training.learning_curve import learning_curve, thinned
from sparsehub.training.split_results import label_scores, split_results

Configure = Callable[..., TrainConfig]


def task(kind: str, labels: tuple[str, ...], **more: Any) -> TaskSpec:
    return TaskSpec(kind, labels, PROBLEM_TYPES[kind], ("text",), "label", 24, ("accuracy",), **more)


def outputs(logits: Any, targets: Any) -> Outputs:
    rows = [{"text": f"row {i}"} for i in range(len(targets))]
    return Outputs(Split("s", rows, list(targets)), np.asarray(logits, dtype=np.float32), np.asarray(targets))


def one_hot(answers: list[int], labels: int) -> Any:
    return np.eye(labels)[answers] * 4


def test_precision_recall_and_support_are_those_of_counting() -> None:
    targets, answers = [0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 0, 0]
    found = label_scores(task("text-classification", ("a", "b", "c")), outputs(one_hot(answers, 3), targets))
    assert found == (
        LabelScores("a", 0.5, round(2 / 3, 6), round(4 / 7, 6), 3),
        LabelScores("b", 0.5, 0.5, 0.5, 2),
        LabelScores("c", 0.0, 0.0, 0.0, 1),
    )


def test_several_labels_are_counted_by_their_thresholds() -> None:
    several = task("multi-label-classification", ("a", "b"), thresholds=(0.5, 0.9))
    logits = [[1.0, 1.0], [1.0, 9.0], [-1.0, 9.0]]  # sigmoid of 1 is 0.73: enough for a, not for b
    targets = np.array([[1.0, 1.0], [0.0, 1.0], [0.0, 0.0]])
    assert label_scores(several, outputs(logits, targets)) == (
        LabelScores("a", 0.5, 1.0, round(2 / 3, 6), 1),
        LabelScores("b", 0.5, 0.5, 0.5, 2),
    )


def test_tokens_are_counted_by_whole_entities() -> None:
    tokens = task("token-classification", ("O", "B-NAME", "I-NAME", "B-PLACE"))
    targets = np.array([[1, 2, 0, 3], [1, 0, -100, -100]])
    answers = np.array([[1, 0, 0, 3], [1, 0, 0, 0]])  # the first name is cut short
    found = label_scores(tokens, outputs(np.eye(4)[answers], targets))
    assert found == (LabelScores("NAME", 0.5, 0.5, 0.5, 2), LabelScores("PLACE", 1.0, 1.0, 1.0, 1))


@pytest.mark.parametrize("kind", ["embedding", "text-generation"])
def test_kinds_without_labels_say_nothing(kind: str) -> None:
    assert split_results(task(kind, ()), "test", outputs(np.zeros((2, 4)), [0, 1])) is None


def test_a_matrix_is_kept_for_few_labels_and_the_worst_pairs_for_many() -> None:
    few = split_results(task("text-classification", ("a", "b")), "test", outputs(one_hot([0, 1, 0], 2), [0, 1, 1]))
    assert few is not None and few.confusion == ((1, 0), (1, 1)) and few.mixed_up == ()
    labels = tuple(f"l{i}" for i in range(31))
    many = split_results(task("text-classification", labels), "test", outputs(one_hot([3, 3, 5], 31), [2, 2, 5]))
    assert many is not None and many.confusion == ()
    assert [dataclasses.astuple(pair) for pair in many.mixed_up] == [("l2", "l3", 2)]


def test_examples_are_spread_over_right_and_wrong_rows() -> None:
    targets = [0] * 10
    answers = [0, 1] * 5
    found = split_results(
        task("text-classification", ("a", "b")), "test", outputs(one_hot(answers, 2), targets), examples=2
    )
    assert found is not None
    assert [(row.text, row.given, row.right) for row in found.examples] == [
        ("row 2", "a", True),
        ("row 6", "a", True),
        ("row 3", "b", False),
        ("row 7", "b", False),
    ]


def test_examples_of_a_regression_are_the_nearest_and_the_farthest() -> None:
    found = split_results(task("regression", ()), "test", outputs([[1.0], [2.5], [9.0]], [1.0, 2.0, 3.0]), examples=1)
    assert found is not None and found.predicted == ((1.0, 1.0), (2.0, 2.5), (3.0, 9.0))
    assert [(row.text, row.expected, row.given) for row in found.examples] == [
        ("row 0", "1", "1.000"),
        ("row 2", "3", "9.000"),
    ]


def test_a_long_text_is_cut_and_a_short_split_gives_all_it_has() -> None:
    found = outputs(one_hot([0], 2), [0])
    long = dataclasses.replace(found, split=Split("s", [{"text": "x" * 1000}], [0]))
    its = split_results(task("text-classification", ("a", "b")), "test", long, examples=5)
    assert its is not None and [len(row.text) for row in its.examples] == [300]


def test_a_curve_keeps_first_and_last_and_what_is_a_number() -> None:
    points = [(float(i), float(i)) for i in range(1000)]
    kept = thinned(points)
    assert len(kept) == 200 and (kept[0], kept[-1]) == (points[0], points[-1]) and list(kept) == sorted(kept)

    class State:
        log_history = (
            {"loss": 0.5, "epoch": 1.0, "step": 3},
            {"eval_loss": 0.7, "eval_accuracy": 0.25, "epoch": 1.0, "step": 3},
            {"loss": float("nan"), "epoch": 2.0, "step": 6},
        )
        best_global_step = 3

    found = learning_curve(State(), "accuracy")
    assert found is not None
    assert (found.training_loss, found.scores, found.kept) == (((1.0, 0.5),), ((1.0, 0.25),), 1.0)


def test_a_package_says_how_its_run_went_and_no_text_of_its_rows(make_config: Configure, tmp_path: Any) -> None:
    config = make_config(out=str(tmp_path / "out"))
    manifest = train(config).manifest
    curve, results = learning_curve_of(manifest.training), results_of(manifest.training, manifest.task)
    assert curve is not None and [epoch for epoch, _ in curve.scores] == [1.0, 2.0]
    assert results is not None and results.split == "validation" and sum(map(sum, results.confusion)) == 12
    right = sum(results.confusion[i][i] for i in range(2))
    assert right / 12 == pytest.approx(manifest.metrics["validation"]["accuracy"], abs=1e-5)
    assert {"learning_curve.png", "confusion.png"} <= set(manifest.files)
    assert b"lovely" not in manifest.to_bytes()


def test_examples_need_test_rows_with_one_answer_each(make_config: Configure) -> None:
    with pytest.raises(UsageError, match="examples shows test rows, and there are none; to do: give test"):
        make_config(examples=2)
    with pytest.raises(UsageError, match="rows of a token-classification are not right or wrong"):
        make_config("token-classification", examples=1)


def test_examples_of_the_test_split(make_config: Configure, tmp_path: Any) -> None:
    config = make_config(out=str(tmp_path / "out"), head="linear", epochs=1)
    fitted = fit(dataclasses.replace(config, test=config.train, examples=2), tmp_path / "run")
    examples = fitted.training["results"]["examples"]
    assert fitted.training["results"]["split"] == "test"
    texts = {row["text"] for row in fitted.data.test.rows}  # type: ignore[union-attr]
    assert 1 <= len(examples) <= 4 and {row["text"] for row in examples} <= texts
    assert all(row["right"] == (row["expected"] == row["given"]) for row in examples)
