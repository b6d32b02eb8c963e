"""From a row's logits to an answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsehub.package.encoding import Encoded
from sparsehub.package.manifest import REGRESSION, TOKEN_CLASSIFICATION, TaskSpec


@dataclass(frozen=True)
class Prediction:
    """One row's answer.

    classification, multiple choice: `label` and `scores`, a probability per label. regression: `value`.
    token classification: `words`, an answer per word (words that truncation cut off have none).
    """

    label: str | None = None
    scores: tuple[float, ...] = ()
    value: float | None = None
    words: tuple[Prediction, ...] = ()


def answers(task: TaskSpec, rows: Sequence[Encoded], logits: Tensor) -> list[Prediction]:
    """logits: [rows, outputs], [rows, choices], or [rows, length, labels] for token classification."""
    logits = logits.float().cpu()
    if task.kind == REGRESSION:
        return [Prediction(value=value) for value in logits.view(len(rows)).tolist()]
    probabilities = torch.softmax(logits, dim=-1)
    if task.kind == TOKEN_CLASSIFICATION:
        places = [list(row.word_starts) for row in rows]
        return [Prediction(words=tuple(_classified(task, probabilities[i, its]))) for i, its in enumerate(places)]
    return _classified(task, probabilities)


def _classified(task: TaskSpec, probabilities: Tensor) -> list[Prediction]:
    """probabilities: [rows or words, labels]."""
    best = probabilities.argmax(-1).tolist()
    return [Prediction(task.labels[i], tuple(scores)) for i, scores in zip(best, probabilities.tolist(), strict=True)]
