"""The rows of a run, their labels, and the task that they make."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sparsehub.errors import DataError
from sparsehub.package.encoding import text_of, words_of
from sparsehub.package.manifest import (
    MULTIPLE_CHOICE,
    PROBLEM_TYPES,
    REGRESSION,
    TEXT_GENERATION,
    TOKEN_CLASSIFICATION,
    TaskSpec,
)
from sparsehub.package.manifest_builder import metric_names
from sparsehub.training.config import TrainConfig
from sparsehub.training.sources import read_table, source_name

SPLITS = ("train", "validation", "test")
_NUMBER = re.compile(r"-?\d+(\.\d+)?")
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Split:
    """Rows of one split with their labels."""

    source: str  # what errors call it
    rows: Sequence[Row]
    targets: Sequence[Any]  # as the model wants them: an index, a number, or an index for each word


@dataclass(frozen=True)
class TaskData:
    """What a run trains on and is judged by."""

    task: TaskSpec
    train: Split
    validation: Split | None
    test: Split | None


def load_data(config: TrainConfig) -> TaskData:
    """Read the splits and make the task; raises `DataError`, which names the split and the row."""
    given = {name: source for name in SPLITS if (source := getattr(config, name)) is not None}
    sources = {name: source_name(source, name) for name, source in given.items()}
    tables = {name: read_table(source, name) for name, source in given.items()}
    label = _label_field(config, tables["train"])
    for name, table in tables.items():
        _check_table(sources[name], table, label)
    labels = config.choices or config.labels or _find_labels(config, tables["train"], sources["train"])
    if config.kind not in (REGRESSION, TEXT_GENERATION) and not 2 <= len(labels) == len(set(labels)):
        raise DataError("a task needs at least two labels, each of them once", found=", ".join(labels)[:300] or "none")
    task = TaskSpec(
        kind=config.kind,
        labels=tuple(labels),
        problem_type=PROBLEM_TYPES[config.kind],
        text_fields=tuple(config.text),
        label_field=label,
        max_length=config.max_length,
        metrics=metric_names(config.kind, len(labels)),
        choice_fields=tuple(config.choices),
    )
    splits = {name: _split(task, sources[name], table) for name, table in tables.items()}
    return TaskData(task, splits["train"], splits.get("validation"), splits.get("test"))


def _label_field(config: TrainConfig, table: Any) -> str:
    """The field of the labels; none for a text generation whose rows have no completions."""
    whole = config.kind == TEXT_GENERATION and config.label == TrainConfig.label
    return "" if whole and config.label not in table.column_names else config.label


def load_split(task: TaskSpec, source: str) -> Split:
    """Rows of one source for a task that is known; raises `DataError`, which names the row."""
    table = read_table(source, source)
    _check_table(source, table, task.label_field)
    return _split(task, source, table)


def _check_table(source: str, table: Any, label: str) -> None:
    if len(table) == 0:
        raise DataError(f"{source} has no rows")
    if label and label not in table.column_names:
        found = ", ".join(table.column_names)
        raise DataError(f"{source} has no field {label!r}", found=f"fields {found}", fix="set --label")


def _find_labels(config: TrainConfig, table: Any, source: str) -> Sequence[str]:
    """The labels of the training rows: as declared by the data set, or sorted."""
    if config.kind in (REGRESSION, TEXT_GENERATION):
        return ()
    names = _declared_labels(table, config.label)
    if names:
        return names
    column = table[config.label]
    found = _flatten(column) if config.kind == TOKEN_CLASSIFICATION else column
    distinct = {value for value in found if _is_label(value)}
    if len(distinct) < 2:
        shown = ", ".join(map(str, distinct)) or "none"
        raise DataError(f"the rows of {source} need at least two labels", found=shown)
    return [str(value) for value in sorted(distinct, key=lambda value: (isinstance(value, str), value))]


def _declared_labels(table: Any, field: str) -> list[str]:
    """The names behind the numbers of a `ClassLabel` column, or of a list of them."""
    feature = table.features[field]
    return list(getattr(getattr(feature, "feature", feature), "names", None) or ())


def _is_label(value: Any) -> bool:
    return isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))


def _flatten(column: Iterable[Any]) -> list[Any]:
    return [value for values in column if isinstance(values, list) for value in values]


def _split(task: TaskSpec, source: str, table: Any) -> Split:
    if task.kind == TEXT_GENERATION:
        return _texts(task, source, table)
    names = _declared_labels(table, task.label_field)
    if not set(names) & set(task.labels):
        names = []  # other names were given: the numbers then count along those
    rows = table.to_list()
    column = [_named(names, row[task.label_field]) for row in rows]
    targets = []
    for number, (row, value) in enumerate(zip(rows, column, strict=True), 1):
        try:
            _check_text(task, row)
            targets.append(_target(task, row, value))
        except DataError as error:
            raise DataError(f"{source}, row {number}: {error}") from error
    return Split(source, rows, targets)


def _texts(task: TaskSpec, source: str, table: Any) -> Split:
    """Rows as they are: what is in them is looked at when they are tokenised."""
    if task.text_fields[0] not in table.column_names:
        found = ", ".join(table.column_names)
        raise DataError(f"{source} has no field {task.text_fields[0]!r}", found=f"fields {found}", fix="set --text")
    rows = table.to_list()
    return Split(source, rows, [None] * len(rows))


def _named(names: Sequence[str], value: Any) -> Any:
    """Declared numbers as their names, so that the order of the task's labels may be another."""
    if isinstance(value, list):
        return [_named(names, item) for item in value]
    return names[value] if isinstance(value, int) and 0 <= value < len(names) else value


def _check_text(task: TaskSpec, row: Row) -> None:
    if task.kind == TOKEN_CLASSIFICATION:
        words_of(row, task.text_fields[0])
        return
    for field in (*task.text_fields, *task.choice_fields):
        text_of(row, field)


def _target(task: TaskSpec, row: Row, value: Any) -> Any:
    if task.kind == REGRESSION:
        return _number(value)
    if task.kind != TOKEN_CLASSIFICATION:
        return label_index(task, value)
    words = words_of(row, task.text_fields[0])
    if not isinstance(value, list) or len(value) != len(words):
        found = f"{len(value)} labels" if isinstance(value, list) else type(value).__name__
        raise DataError("labels and words do not align", found=found, expected=f"a list of {len(words)}")
    return [label_index(task, item) for item in value]


def _number(value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if number != number or number in (float("inf"), float("-inf")):
        raise DataError("the label of a regression must be a finite number", found=repr(value)[:80])
    return number


def label_index(task: TaskSpec, value: Any) -> int:
    """A label as its place in the task's list: by name, or by number where no label is a number itself."""
    place = isinstance(value, int) and not isinstance(value, bool)  # a multiple choice has places, not numbers
    if _is_label(value) and str(value) in task.labels and not (place and task.kind == MULTIPLE_CHOICE):
        return task.labels.index(str(value))
    place = place and (task.kind == MULTIPLE_CHOICE or not any(map(_NUMBER.fullmatch, task.labels)))
    if place and 0 <= value < len(task.labels):
        return int(value)
    raise DataError(
        "a label that the task does not have", found=repr(value)[:80], expected=", ".join(task.labels)[:300]
    )
