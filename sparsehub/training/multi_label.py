"""Several labels a row: how rows say them, the threshold of each, and the metrics, through scikit-learn.

A threshold is the probability from which on a label is given. It is chosen on the validation rows, each label's by
itself: the one with the largest F1, of equal ones the nearest to 0.5, in the middle between two probabilities. Where
fewer than `SEEN` of them have the label, or lack it, that would be luck, and it stays 0.5.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sparsehub.errors import DataError
from sparsehub.extras import require
from sparsehub.package.task_spec import EVEN, MULTI_LABEL, TaskSpec
from sparsehub.training.labels import label_index

SEEN = 10  # validation rows with a label, and without it, from which on they choose its threshold
HOW = "a list of labels in JSON lines or Parquet, or a field of 0 and 1 for each label: --label one,two,three"

Numbers = NDArray[Any]


def listed_target(task: TaskSpec, value: Any) -> list[float]:
    """A row's list of labels as 0 and 1 for each label of the task; raises `DataError` for anything else."""
    if not isinstance(value, list | tuple):
        found = "nothing: an empty list says that a row has no label" if value is None else repr(value)[:80]
        raise DataError("a row of several labels holds no list of them", found=found, expected=HOW)
    places = [label_index(task, item) for item in value]
    numbers = [item for item in value if isinstance(item, int | float)]
    if len(set(places)) < len(places) or (len(numbers) == len(value) == len(task.labels) == 2 and not _numbered(task)):
        raise DataError("a list of labels names each once", found=repr(value)[:80], expected=HOW)
    return [float(place in places) for place in range(len(task.labels))]


def _numbered(task: TaskSpec) -> bool:
    return all(label.isdecimal() for label in task.labels)


def column_target(row: Mapping[str, Any], columns: Sequence[str]) -> list[float]:
    """0 and 1 for each label, from a field for each; raises `DataError`, which names the field."""
    return [_switch(row.get(column), column) for column in columns]


def _switch(value: Any, column: str) -> float:
    text = value.strip().lower() if isinstance(value, str) else value
    if isinstance(text, bool | int | float) and text in (0, 1):
        return float(text)
    if text in ("0", "1", "0.0", "1.0", "false", "true"):
        return float(text in ("1", "1.0", "true"))
    raise DataError(f"the field {column!r} does not say whether a row has the label", found=repr(value)[:80],
                    expected="0 or 1, false or true")  # fmt: skip


def probabilities(logits: Numbers) -> Numbers:
    """As the engine makes them: [rows, labels] float32."""
    found: Numbers = torch.sigmoid(torch.from_numpy(np.asarray(logits)).float()).numpy()
    return found


def with_thresholds(task: TaskSpec, logits: Numbers, targets: Numbers) -> TaskSpec:
    """A multi-label task with the thresholds that these validation rows choose; any other task as it is."""
    if task.kind != MULTI_LABEL:
        return task
    scores = probabilities(logits)
    having = np.asarray(targets).sum(0)
    enough = (having >= SEEN) & (len(targets) - having >= SEEN)
    found = [_best(scores[:, i], targets[:, i]) if enough[i] else EVEN for i in range(len(task.labels))]
    return dataclasses.replace(task, thresholds=tuple(found))


def _best(scores: Numbers, targets: Numbers) -> float:
    """The threshold of one label. Between two neighbours of the sorted scores every threshold gives the same F1."""
    order = np.argsort(-scores, kind="stable")
    ranked, right = scores[order].astype(np.float64), np.cumsum(targets[order])
    given = np.arange(1, len(ranked) + 1)
    f1 = 2 * right / (given + right[-1])
    ends = np.append(ranked[:-1] > ranked[1:], True)  # equal scores are given all or none
    middles = np.append((ranked[:-1] + ranked[1:]) / 2, ranked[-1] / 2)
    best = ends & (f1 >= f1[ends].max() - 1e-12)
    return float(min(middles[best], key=lambda middle: abs(middle - EVEN)))


def several_metrics(task: TaskSpec, logits: Numbers, targets: Numbers) -> dict[str, float]:
    """Average precision by the scores alone, the mean of the labels that some row has; F1 by the task's thresholds."""
    metrics = require("sklearn.metrics", "train")
    scores, present = probabilities(logits), np.flatnonzero(np.asarray(targets).sum(0))
    guesses = given_labels(task, logits)
    each = [metrics.average_precision_score(targets[:, i], np.nan_to_num(scores[:, i])) for i in present]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a label has no row, or is never given: its F1 is 0
        return {
            "average_precision": float(np.mean(each)) if each else 0.0,
            "micro_f1": metrics.f1_score(targets, guesses, average="micro", zero_division=0),
            "macro_f1": metrics.f1_score(targets, guesses, average="macro", zero_division=0),
        }


def given_labels(task: TaskSpec, logits: Numbers) -> Numbers:
    """[rows, labels] bool: the labels whose probability reaches their threshold."""
    found: Numbers = probabilities(logits) >= np.asarray(task.thresholds)
    return found


def commonest(train: Sequence[Sequence[float]], rows: int) -> Numbers:
    """Logits [rows, labels] of always answering the one label that most training rows have."""
    counts = Counter({place: float(sum(column)) for place, column in enumerate(zip(*train, strict=True))})
    logits = np.full((rows, len(train[0])), -10.0)
    logits[:, counts.most_common(1)[0][0]] = 10.0
    return logits
