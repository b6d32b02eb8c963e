"""Where a trained task is right and wrong on one split, as its package says it and its card shows it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sparsehub.extras import require
from sparsehub.package.results import (
    MAX_LABELS,
    MAX_MATRIX,
    MAX_PAIRS,
    MAX_TEXT,
    Example,
    LabelScores,
    MixedUp,
    Points,
    SplitResults,
)
from sparsehub.package.task_spec import MULTI_LABEL, ONE_LABEL_KINDS, REGRESSION, TOKEN_CLASSIFICATION, TaskSpec
from sparsehub.training.error_analysis import JudgedRow, confusion, judged_row, most_confused, row_losses
from sparsehub.training.evaluation import Outputs
from sparsehub.training.learning_curve import thinned
from sparsehub.training.metrics import tags
from sparsehub.training.multi_label import given_labels


def split_results(task: TaskSpec, split: str, outputs: Outputs, examples: int = 0) -> SplitResults | None:
    """What a package says of a split, from a model's outputs for it; None for kinds of which nothing can be said.

    examples: so many right rows and so many wrong ones, of a regression the nearest and the farthest, with their texts.
    """
    matrix = confusion(task, outputs)
    small = matrix is not None and len(matrix) <= MAX_MATRIX
    found = SplitResults(
        split,
        labels=label_scores(task, outputs),
        confusion=tuple(tuple(map(int, row)) for row in matrix) if matrix is not None and small else (),
        mixed_up=()
        if matrix is None or small
        else tuple(MixedUp(*pair) for pair in most_confused(matrix, task.labels, MAX_PAIRS)),
        predicted=_predicted(outputs) if task.kind == REGRESSION else (),
        examples=_examples(task, outputs, examples) if examples else (),
    )
    return found if found != SplitResults(split) else None


def label_scores(task: TaskSpec, outputs: Outputs) -> tuple[LabelScores, ...]:
    """Precision, recall, F1 and support of every label, through scikit-learn, of entities through seqeval; at most
    `MAX_LABELS`, of more those with the most rows."""
    if task.kind == TOKEN_CLASSIFICATION:
        found = _entity_scores(task, outputs)
    elif task.kind in ONE_LABEL_KINDS:
        found = _scores(task, outputs.targets, outputs.logits.argmax(-1), labels=range(len(task.labels)))
    elif task.kind == MULTI_LABEL:
        found = _scores(task, outputs.targets, given_labels(task, outputs.logits))
    else:
        return ()
    kept = sorted(sorted(found, key=lambda its: -its.support)[:MAX_LABELS], key=found.index)
    return tuple(kept)


def _scores(task: TaskSpec, targets: Any, guesses: Any, **more: Any) -> list[LabelScores]:
    metrics = require("sklearn.metrics", "train")
    columns = metrics.precision_recall_fscore_support(targets, guesses, average=None, zero_division=0, **more)
    return [_label(*row) for row in zip(task.labels, *columns, strict=True)]


def _entity_scores(task: TaskSpec, outputs: Outputs) -> list[LabelScores]:
    found, gold = tags(task, outputs.logits.argmax(-1), outputs.targets)
    seqeval = require("seqeval.metrics", "train")
    table = seqeval.classification_report(gold, found, output_dict=True, zero_division=0)
    return [
        _label(name, row["precision"], row["recall"], row["f1-score"], row["support"])
        for name, row in table.items()
        if not name.endswith(" avg")
    ]


def _label(name: str, precision: float, recall: float, f1: float, support: float) -> LabelScores:
    return LabelScores(name, round(float(precision), 6), round(float(recall), 6), round(float(f1), 6), int(support))


def _predicted(outputs: Outputs) -> Points:
    pairs = zip(outputs.targets.reshape(-1).tolist(), outputs.logits.reshape(-1).tolist(), strict=True)
    return thinned(
        sorted((round(float(true), 4), round(float(given), 4)) for true, given in pairs if np.isfinite(given))
    )


def _examples(task: TaskSpec, outputs: Outputs, count: int) -> tuple[Example, ...]:
    """Right rows, then wrong ones, evenly spaced over all of them, which lie in the order of their lengths."""
    if task.kind == REGRESSION:
        order = np.argsort(row_losses(task, outputs), kind="stable").tolist()
        right, wrong = order[:count], order[max(count, len(order) - count) :]
    else:
        hit = outputs.logits.argmax(-1) == outputs.targets
        right, wrong = (_spread(np.flatnonzero(rows).tolist(), count) for rows in (hit, ~hit))
    chosen = [(int(i), True) for i in right] + [(int(i), False) for i in wrong]
    return tuple(_example(task, judged_row(task, outputs, i, 0.0), is_right) for i, is_right in chosen)


def _spread(places: Sequence[int], count: int) -> list[int]:
    """`count` of them, from the middles of as many equal parts."""
    if len(places) <= count:
        return list(places)
    return [places[int((i + 0.5) * len(places) / count)] for i in range(count)]


def _example(task: TaskSpec, judged: JudgedRow, right: bool) -> Example:
    text = row_text(task, judged.row)
    cut = text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 3] + "..."
    return Example(cut, judged.expected, judged.given, right)


def row_text(task: TaskSpec, row: Mapping[str, Any]) -> str:
    """The texts and choices of a row in one line."""
    fields = [row.get(name) for name in (*task.text_fields, *task.choice_fields)]
    return " | ".join(field if isinstance(field, str) else json.dumps(field, ensure_ascii=False) for field in fields)
