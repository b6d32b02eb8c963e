"""Where a model is wrong: its confusion matrix, its worst rows, and whether another one is better by more than chance.

`sparsehub evaluate` shows what is computed here from a model's outputs; `split_results` makes of it what a card shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsehub.extras import require
from sparsehub.package.task_spec import BY_ROW_KINDS, ONE_LABEL_KINDS, REGRESSION, TaskSpec
from sparsehub.training.evaluation import Outputs


@dataclass(frozen=True)
class JudgedRow:
    """A row, what it should be, what the model said, and its loss: cross entropy or squared error."""

    row: Any
    expected: str
    given: str
    loss: float


@dataclass(frozen=True)
class Difference:
    """How two models differ on the same rows, and how likely chance alone makes so large a difference."""

    test: str  # the test's name
    better: int  # rows on which the first is better
    worse: int
    p: float


def confusion(task: TaskSpec, outputs: Outputs) -> NDArray[Any] | None:
    """[labels, labels] rows by expected and given label; None for kinds without one label a row."""
    if task.kind not in ONE_LABEL_KINDS:
        return None
    metrics = require("sklearn.metrics", "train")
    found: NDArray[Any] = metrics.confusion_matrix(
        outputs.targets, outputs.logits.argmax(-1), labels=range(len(task.labels))
    )
    return found


def worst_rows(task: TaskSpec, outputs: Outputs, count: int) -> list[JudgedRow]:
    """The rows with the largest losses, largest first; none for kinds whose rows are not judged by themselves."""
    if task.kind not in BY_ROW_KINDS:
        return []
    losses = row_losses(task, outputs)
    return [judged_row(task, outputs, int(i), float(losses[i])) for i in np.argsort(-losses, kind="stable")[:count]]


def row_losses(task: TaskSpec, outputs: Outputs) -> NDArray[Any]:
    """[rows] float64: cross entropy, or squared error of a regression."""
    logits, targets = outputs.logits.astype(np.float64), outputs.targets
    if task.kind == REGRESSION:
        return (logits.reshape(-1) - targets.reshape(-1)) ** 2  # type: ignore[no-any-return]
    special = require("scipy.special", "train")
    found: NDArray[Any] = -special.log_softmax(logits, axis=-1)[np.arange(len(targets)), targets]
    return found


def difference(task: TaskSpec, first: Outputs, second: Outputs) -> Difference | None:
    """The paired test that fits: McNemar's exact one on right and wrong rows, Wilcoxon's on squared errors; None for
    kinds whose rows are not judged by themselves. Both outputs are of the same rows, in the same order."""
    if task.kind not in BY_ROW_KINDS:
        return None
    stats = require("scipy.stats", "train")
    if task.kind == REGRESSION:
        gain = row_losses(task, second) - row_losses(task, first)
        better, worse = int((gain > 0).sum()), int((gain < 0).sum())
        p = float(stats.wilcoxon(gain).pvalue) if better + worse else 1.0
        return Difference("Wilcoxon's signed-rank test on squared errors", better, worse, p)
    right = [outputs.logits.argmax(-1) == outputs.targets for outputs in (first, second)]
    better, worse = int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())
    p = float(stats.binomtest(better, better + worse).pvalue) if better + worse else 1.0
    return Difference("McNemar's exact test", better, worse, p)


def most_confused(matrix: NDArray[Any], labels: Sequence[str], count: int) -> list[tuple[str, str, int]]:
    """The pairs (expected, given) that are taken for one another most often, with how often."""
    wrong = matrix.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:count]
    pairs = [divmod(int(place), len(labels)) for place in order]
    return [(labels[i], labels[j], int(wrong[i, j])) for i, j in pairs if wrong[i, j]]


def judged_row(task: TaskSpec, outputs: Outputs, index: int, loss: float) -> JudgedRow:
    """One row of `outputs` as people read it."""
    row, target = outputs.split.rows[index], outputs.targets[index]
    if task.kind == REGRESSION:
        return JudgedRow(row, f"{float(target):g}", f"{float(outputs.logits.reshape(-1)[index]):.3f}", loss)
    return JudgedRow(row, task.labels[int(target)], task.labels[int(outputs.logits[index].argmax())], loss)
