from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats
from seqeval import metrics as seqeval
from sklearn import metrics

from sparsehub.errors import UsageError
from sparsehub.package.manifest_builder import metric_names
from sparsehub.package.task_spec import KINDS, PROBLEM_TYPES, TaskSpec
from sparsehub.training.metrics import best_metric, compute, majority

RANDOM = np.random.default_rng(0)


def spec(kind: str, labels: tuple[str, ...] = ()) -> TaskSpec:
    names = metric_names(kind, len(labels))
    return TaskSpec(kind, labels, PROBLEM_TYPES[kind], ("text",), "label", 8, names)


def classes(count: int) -> TaskSpec:
    return spec("text-classification", tuple(f"label{i}" for i in range(count)))


def expected_classes(targets: Any, guesses: Any, count: int) -> dict[str, float]:
    found = {
        "accuracy": metrics.accuracy_score(targets, guesses),
        "macro_f1": metrics.f1_score(targets, guesses, average="macro", zero_division=0),
        "matthews": metrics.matthews_corrcoef(targets, guesses),
    }
    if count == 2:
        found["f1"] = metrics.f1_score(targets, guesses, zero_division=0)
    return found


def one_hot(guesses: Any, count: int) -> Any:
    return np.eye(count)[guesses] * 3 - 1


@pytest.mark.parametrize("count", [2, 3, 7])
def test_classification_is_what_scikit_learn_says(count: int) -> None:
    for _ in range(10):
        targets = RANDOM.integers(0, count, 40)
        logits = RANDOM.normal(size=(40, count))
        found = compute(classes(count), logits, targets)
        assert found == pytest.approx(expected_classes(targets, logits.argmax(1), count), abs=1e-6)
        assert tuple(found) == classes(count).metrics


@pytest.mark.parametrize(
    ("targets", "guesses"),
    [
        ([0, 1, 0, 1], [0, 0, 0, 0]),
        ([0, 1, 0, 1], [1, 1, 1, 1]),
        ([0, 0, 0], [0, 0, 0]),
        ([0, 0, 0], [1, 0, 1]),
        ([1, 1], [0, 0]),
        ([1], [1]),
    ],
)
def test_constant_answers_and_one_sided_splits_have_metrics(targets: list[int], guesses: list[int]) -> None:
    found = compute(classes(2), one_hot(guesses, 2), np.array(targets))
    assert found == pytest.approx(expected_classes(targets, guesses, 2), abs=1e-6)
    assert all(np.isfinite(value) for value in found.values())


def test_a_class_that_the_split_lacks_counts_only_where_it_was_answered() -> None:
    targets, never, once = [0, 1, 0, 1], [0, 1, 1, 1], [0, 2, 1, 1]
    for guesses in (never, once):
        found = compute(classes(3), one_hot(guesses, 3), np.array(targets))
        assert found == pytest.approx(expected_classes(targets, guesses, 3), abs=1e-6)
    assert compute(classes(3), one_hot(never, 3), np.array(targets))["macro_f1"] == pytest.approx(
        (metrics.f1_score([1, 0, 1, 0], [1, 0, 0, 0]) + metrics.f1_score(targets, never)) / 2, abs=1e-6
    )


def test_multiple_choice_is_accuracy_alone() -> None:
    logits, targets = RANDOM.normal(size=(30, 4)), RANDOM.integers(0, 4, 30)
    task = spec("multiple-choice", ("a", "b", "c", "d"))
    assert compute(task, logits, targets) == pytest.approx({"accuracy": np.mean(logits.argmax(1) == targets)}, abs=1e-6)


@pytest.mark.parametrize("shape", [(25,), (25, 1)])
def test_regression_is_what_scipy_says(shape: tuple[int, ...]) -> None:
    guesses, targets = RANDOM.normal(size=25), RANDOM.normal(size=25).round(1)
    found = compute(spec("regression"), guesses.reshape(shape), targets)
    wanted = {
        "pearson": stats.pearsonr(guesses, targets).statistic,
        "spearman": stats.spearmanr(guesses, targets).statistic,
        "mse": metrics.mean_squared_error(targets, guesses),
    }
    assert found == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize(
    ("guesses", "targets"), [([2.0, 2, 2], [1.0, 2, 3]), ([1.0, 2, 3], [2.0, 2, 2]), ([1.0], [3.0])]
)
def test_a_correlation_that_is_not_defined_is_zero(guesses: list[float], targets: list[float]) -> None:
    found = compute(spec("regression"), np.array(guesses), np.array(targets))
    assert (found["pearson"], found["spearman"]) == (0.0, 0.0)
    assert found["mse"] == pytest.approx(np.mean((np.array(guesses) - targets) ** 2), abs=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_model_that_diverged_has_the_worst_error_and_not_the_best(value: float) -> None:
    found = compute(spec("regression"), np.array([1.0, value, 2.0]), np.array([1.0, 2.0, 3.0]))
    assert found["mse"] > 1e300
    assert found["pearson"] == 0.0


TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")


def test_token_classification_is_what_seqeval_says_without_the_ignored_tokens() -> None:
    targets = RANDOM.integers(0, 5, (12, 9))
    targets[RANDOM.random((12, 9)) < 0.3] = -100
    logits = RANDOM.normal(size=(12, 9, 5))
    gold = [[TAGS[t] for t in row if t != -100] for row in targets]
    guessed = [
        [TAGS[g] for g, t in zip(row, wanted, strict=True) if t != -100]
        for row, wanted in zip(logits.argmax(-1), targets, strict=True)
    ]
    wanted_scores = {
        "f1": seqeval.f1_score(gold, guessed),
        "precision": seqeval.precision_score(gold, guessed),
        "recall": seqeval.recall_score(gold, guessed),
        "accuracy": seqeval.accuracy_score(gold, guessed),
    }
    assert compute(spec("token-classification", TAGS), logits, targets) == pytest.approx(wanted_scores, abs=1e-6)


def test_entities_count_whole() -> None:
    targets = np.array([[1, 2, 0, 3]])
    found = compute(spec("token-classification", TAGS), np.eye(5)[[[1, 0, 0, 3]]], targets)
    assert (found["precision"], found["recall"], found["accuracy"]) == (0.5, 0.5, 0.75)


def test_no_entities_at_all_have_metrics() -> None:
    found = compute(spec("token-classification", TAGS), np.eye(5)[[[0, 0]]], np.array([[0, -100]]))
    assert found == {"f1": 0.0, "precision": 0.0, "recall": 0.0, "accuracy": 1.0}


def test_the_majority_answers_the_commonest_training_label() -> None:
    found = majority(classes(3), [2, 2, 1], [2, 0, 2, 1])
    assert found == pytest.approx(expected_classes([2, 0, 2, 1], [2, 2, 2, 2], 3), abs=1e-6)


def test_the_majority_of_a_regression_answers_the_mean() -> None:
    assert majority(spec("regression"), [1.0, 3.0], [2.0, 4.0]) == {"pearson": 0.0, "spearman": 0.0, "mse": 2.0}


def test_the_majority_of_tags_answers_the_commonest_one() -> None:
    found = majority(spec("token-classification", TAGS), [[0, 0, 1], [3]], [[0, 1, 0], [0]])
    assert found == {"f1": 0.0, "precision": 0.0, "recall": 0.0, "accuracy": 0.75}


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_metric_decides_unless_another_is_wanted(kind: str) -> None:
    task = spec(kind, () if kind == "regression" else ("a", "b"))
    assert best_metric(task, None) == task.metrics[0]
    for name in task.metrics:
        assert best_metric(task, name) == name


def test_a_metric_that_the_kind_lacks_is_answered_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="unknown metric of regression 'pearsonr', did you mean 'pearson'"):
        best_metric(spec("regression"), "pearsonr")
    with pytest.raises(UsageError, match="unknown metric of text-classification 'f1'"):
        best_metric(classes(3), "f1")
