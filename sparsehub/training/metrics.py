"""The metrics of GLUE and SuperGLUE for each kind of task, through scikit-learn, scipy and seqeval."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sparsehub.errors import UsageError
from sparsehub.extras import require
from sparsehub.package.task_spec import (
    EMBEDDING,
    MULTI_LABEL,
    REGRESSION,
    TEXT_GENERATION,
    TOKEN_CLASSIFICATION,
    TaskSpec,
)
from sparsehub.schema import unknown_name
from sparsehub.training.multi_label import commonest, several_metrics
from sparsehub.training.similarity import similarity_mean_loss, similarity_metrics

IGNORED = -100
LOWER_IS_BETTER = ("mse", "perplexity")


def best_metric(task: TaskSpec, wanted: str | None) -> str:
    """The metric that decides; raises `UsageError` for one that the kind does not have."""
    if wanted is not None and wanted not in task.metrics:
        raise UsageError(unknown_name(f"metric of {task.kind}", wanted, list(task.metrics)))
    return wanted or task.metrics[0]


def compute(task: TaskSpec, logits: NDArray[Any], targets: NDArray[Any]) -> dict[str, float]:
    """logits: as the model gives them, of a text generation `language.row_scores`; targets: indices or numbers, of
    multi-label [rows, labels] of 0 and 1, of an embedding as for `similarity_metrics`; `IGNORED` where a token has no
    label."""
    if task.kind == TEXT_GENERATION:
        return _generation(logits)
    if task.kind == EMBEDDING:
        return _rounded(similarity_metrics(logits, targets))
    if task.kind == REGRESSION:
        return _regression(logits.reshape(-1), targets.reshape(-1))
    if task.kind == MULTI_LABEL:
        return _rounded(several_metrics(task, logits, targets))
    if task.kind == TOKEN_CLASSIFICATION:
        return _tokens(task, logits.argmax(-1), targets)
    return _classification(task, logits.argmax(-1), targets)


def mean_loss(task: TaskSpec, logits: NDArray[Any], targets: NDArray[Any]) -> float:
    """The loss of the same logits: cross entropy (of several labels binary) or squared error, over rows or tokens."""
    if task.kind == TEXT_GENERATION:
        loss, tokens, _, _ = logits.sum(0)
        return float(loss / tokens)
    if task.kind == EMBEDDING:
        return similarity_mean_loss(logits, targets)
    if task.kind == REGRESSION:
        return _squared_error(logits.reshape(-1), targets.reshape(-1))
    if task.kind == MULTI_LABEL:
        both = torch.from_numpy(logits).float(), torch.from_numpy(targets).float()
        return float(torch.nn.functional.binary_cross_entropy_with_logits(*both))
    flat = torch.from_numpy(logits).float().reshape(-1, logits.shape[-1])
    labels = torch.from_numpy(targets).long().reshape(-1)
    return float(torch.nn.functional.cross_entropy(flat, labels, ignore_index=IGNORED))


def majority(task: TaskSpec, train: Sequence[Any], test: Sequence[Any]) -> dict[str, float]:
    """The metrics of always answering the commonest training label (the mean, for a regression)."""
    if task.kind == REGRESSION:
        targets = np.asarray(test, dtype=float)
        return _regression(np.full(len(targets), float(np.mean(train))), targets)
    if task.kind == MULTI_LABEL:
        return _rounded(several_metrics(task, commonest(train, len(test)), np.asarray(test)))
    if task.kind == TOKEN_CLASSIFICATION:
        common = Counter(label for row in train for label in row).most_common(1)[0][0]
        rows = [[task.labels[label] for label in row] for row in test]
        return _entities([[task.labels[common]] * len(row) for row in rows], rows)
    common = Counter(train).most_common(1)[0][0]
    return _classification(task, np.full(len(test), common), np.asarray(test))


def _classification(task: TaskSpec, guesses: NDArray[Any], targets: NDArray[Any]) -> dict[str, float]:
    metrics = require("sklearn.metrics", "train")
    results = {"accuracy": metrics.accuracy_score(targets, guesses)}
    if "macro_f1" in task.metrics:
        results["macro_f1"] = metrics.f1_score(targets, guesses, average="macro", zero_division=0)
        results["matthews"] = metrics.matthews_corrcoef(targets, guesses)
    if "f1" in task.metrics:
        results["f1"] = metrics.f1_score(targets, guesses, average="binary", pos_label=1, zero_division=0)
    return _rounded(results)


def _regression(guesses: NDArray[Any], targets: NDArray[Any]) -> dict[str, float]:
    stats = require("scipy.stats", "train")
    constant = np.ptp(guesses) == 0 or np.ptp(targets) == 0 or len(targets) < 2
    return _rounded(
        {
            "pearson": 0.0 if constant else stats.pearsonr(guesses, targets)[0],
            "spearman": 0.0 if constant else stats.spearmanr(guesses, targets)[0],
            "mse": _squared_error(guesses, targets),
        }
    )


def _generation(scores: NDArray[Any]) -> dict[str, float]:
    """Perplexity per token; the shares of rows and of tokens that a model which takes the likeliest gets right."""
    loss, tokens, right, _ = scores.sum(0)
    perplexity = math.exp(min(float(loss / tokens), 700.0))  # what diverged is very bad, and still a number
    return _rounded({"perplexity": perplexity, "exact_match": scores[:, 3].mean(), "token_accuracy": right / tokens})


def _squared_error(guesses: NDArray[Any], targets: NDArray[Any]) -> float:
    """The mean; of a model that diverged the worst number that JSON can hold, so that no such epoch is the best."""
    error = float(np.mean((guesses - targets) ** 2))
    return error if math.isfinite(error) else sys.float_info.max


def _tokens(task: TaskSpec, guesses: NDArray[Any], targets: NDArray[Any]) -> dict[str, float]:
    found, gold = tags(task, guesses, targets)
    return _entities(found, gold)


def tags(task: TaskSpec, guesses: NDArray[Any], targets: NDArray[Any]) -> tuple[list[list[str]], list[list[str]]]:
    """Of a token classification, the tags of every row's words: what was guessed, and what they are."""
    kept = targets != IGNORED
    gold = [[task.labels[i] for i in row[mask]] for row, mask in zip(targets, kept, strict=True)]
    found = [[task.labels[i] for i in row[mask]] for row, mask in zip(guesses, kept, strict=True)]
    return found, gold


def _entities(found: list[list[str]], gold: list[list[str]]) -> dict[str, float]:
    seqeval = require("seqeval.metrics", "train")
    return _rounded(
        {
            "f1": seqeval.f1_score(gold, found, zero_division=0),
            "precision": seqeval.precision_score(gold, found, zero_division=0),
            "recall": seqeval.recall_score(gold, found, zero_division=0),
            "accuracy": seqeval.accuracy_score(gold, found),
        }
    )


def _rounded(results: dict[str, Any]) -> dict[str, float]:
    """Six decimals: more would only be noise in a file that people read."""
    return {name: round(float(value), 6) if math.isfinite(value) else 0.0 for name, value in results.items()}
