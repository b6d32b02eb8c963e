"""Turns logits into predictions, for evaluation and the engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsehub.package.encoding import Encoded
from sparsehub.package.task_spec import MULTI_LABEL, REGRESSION, TOKEN_CLASSIFICATION, TaskSpec


@dataclass(frozen=True)
class Prediction:
    """One row's answer; which fields are set depends on the task's kind."""

    label: str | None = None  # classification and multiple choice: the most probable label
    scores: tuple[float, ...] = ()  # a probability per label, in the order of the task's labels
    labels: tuple[str, ...] | None = None  # multi-label: those whose probability reaches their threshold
    value: float | None = None  # regression
    words: tuple[Prediction, ...] = ()  # token classification: one per word, as far as truncation left them


def finite_rows(task: TaskSpec, rows: Sequence[Encoded], logits: Tensor) -> list[bool]:
    """Whether each row's logits are all numbers, as far as its answer is made of them; the engine asks before it
    answers. logits: as for `answers`."""
    finite = logits.isfinite().cpu()
    if task.kind == TOKEN_CLASSIFICATION:
        return [bool(finite[i, list(row.word_starts)].all()) for i, row in enumerate(rows)]
    result: list[bool] = finite.reshape(len(finite), -1).all(1).tolist()
    return result


def answers(task: TaskSpec, rows: Sequence[Encoded], logits: Tensor) -> list[Prediction]:
    """The predictions of encoded rows.

    logits: [rows, outputs], [rows, choices], or [rows, length, labels] for token classification.
    """
    logits = logits.float().cpu()
    if task.kind == REGRESSION:
        return [Prediction(value=value) for value in logits.view(len(rows)).tolist()]
    if task.kind == MULTI_LABEL:
        return [_several(task, scores) for scores in torch.sigmoid(logits).tolist()]
    probabilities = torch.softmax(logits, dim=-1)
    if task.kind == TOKEN_CLASSIFICATION:
        places = [list(row.word_starts) for row in rows]
        return [Prediction(words=tuple(_classified(task, probabilities[i, its]))) for i, its in enumerate(places)]
    return _classified(task, probabilities)


def _several(task: TaskSpec, scores: Sequence[float]) -> Prediction:
    each = zip(task.labels, scores, task.thresholds, strict=True)
    return Prediction(labels=tuple(label for label, score, least in each if score >= least), scores=tuple(scores))


def _classified(task: TaskSpec, probabilities: Tensor) -> list[Prediction]:
    """probabilities: [rows or words, labels]."""
    best = probabilities.argmax(-1).tolist()
    return [Prediction(task.labels[i], tuple(scores)) for i, scores in zip(best, probabilities.tolist(), strict=True)]
