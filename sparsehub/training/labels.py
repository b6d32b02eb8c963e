"""Labels as they are written: their names in the data, their places in a task, and what no label can be.

A label is a name. A number in JSON or Parquet has the name that it prints as, and a cell of a CSV file is its name:
`7` is the same label in both, `007` is another one.
"""

from __future__ import annotations

import datetime
import math
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from sparsehub.errors import DataError
from sparsehub.package.encoding import is_blank
from sparsehub.package.task_spec import MULTI_LABEL, MULTIPLE_CHOICE, REGRESSION, TOKEN_CLASSIFICATION, TaskSpec

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_WHOLE_NUMBER = re.compile(r"-?\d+(\.\d+)?", re.ASCII)
_PLACE = re.compile(r"0|[1-9]\d{0,8}", re.ASCII)
_MEASURED = re.compile(r"[+-]?\d*\.\d*[1-9]\d*([eE][+-]?\d+)?|[+-]?\d+(\.\d+)?[eE][+-]?\d+", re.ASCII)
_DATE = re.compile(r"\d{4}-\d\d-\d\d([T ][\d:.+Z-]+)?|\d{1,2}[/.]\d{1,2}[/.]\d{4}", re.ASCII)
KEEP = "--labels keeps them as names"


def is_label(value: Any) -> bool:
    """Whether a value can be a label's name: a text that is not empty, or a number."""
    if isinstance(value, str):
        return not is_blank(value)
    return isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))


def found_labels(values: Iterable[Any], *, untyped: bool) -> list[str]:
    """The labels among different values, in order: numbers by size, texts by alphabet.

    untyped: whether the values are cells of a file without types, where numbers are texts.
    """
    distinct = {str(value): value for value in values if is_label(value)}
    if untyped and all(map(_WHOLE_NUMBER.fullmatch, distinct)):
        return sorted(distinct, key=lambda name: (float(name), name))
    return sorted(distinct, key=lambda name: (isinstance(distinct[name], str), distinct[name]))


def label_index(task: TaskSpec, value: Any) -> int:
    """A label as its place in the task's list: by name, or by number where no label is a number itself."""
    place = _place(value)
    if task.kind == MULTIPLE_CHOICE and place is not None:  # a multiple choice has places, not numbers
        return _choice(task, value, place)
    for name in _names(value) if is_label(value) else ():
        if name in task.labels:
            return task.labels.index(name)
    numbered = any(map(_WHOLE_NUMBER.fullmatch, task.labels))
    if place is not None and not numbered and place < len(task.labels):
        return place
    raise _unknown(task, value)


def _choice(task: TaskSpec, value: Any, place: int) -> int:
    named = isinstance(value, str) and value in task.labels
    if named and task.labels.index(value) != place:
        fix = "call the choices' fields otherwise"
        raise DataError("the right choice may be a field or a place", found=repr(value), fix=fix)
    if place < len(task.labels):
        return place
    raise _unknown(task, value)


def _place(value: Any) -> int | None:
    """The place that a whole number names, or a text that is one."""
    if isinstance(value, str):
        return int(value) if _PLACE.fullmatch(value) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _names(value: Any) -> Iterator[str]:
    """How a label may be written in another file: 1 where that has 1.0, true where it has True."""
    yield str(value)
    if isinstance(value, bool):
        yield from (str(value).lower(), str(value).upper())
    elif isinstance(value, float) and value.is_integer():
        yield str(int(value))
    elif isinstance(value, int):
        yield f"{value}.0"


def _unknown(task: TaskSpec, value: Any) -> DataError:
    twins = [name for name in task.labels if is_label(value) and _written_alike(name) == _written_alike(value)]
    fix = f"{twins[0]!r} is written otherwise: make them the same" if twins else kind_that_fits([value], task.kind)
    shown = ", ".join(task.labels)[:300]
    return DataError("a label that the task does not have", found=repr(value)[:80], expected=shown, fix=fix)


def _written_alike(value: Any) -> str:
    """Equal for labels that differ only in case, white space, quotes, or the way a number is written."""
    text = unicodedata.normalize("NFKC", str(value)).casefold()
    text = "".join(letter for letter in text if not is_blank(letter)).strip("'\"")
    return f"{float(text):g}" if _NUMBER.fullmatch(text) and len(text) < 15 else text


def alike(labels: Sequence[str]) -> list[str]:
    """A warning for each group of labels that differ only in how they are written."""
    groups: dict[str, list[str]] = defaultdict(list)
    for label in labels:
        groups[_written_alike(label)].append(label)
    return [
        f"warning: the labels {' and '.join(map(repr, group))} differ only in how they are written; each is counted"
        for group in groups.values()
        if len(group) > 1
    ]


def kind_that_fits(values: Sequence[Any], kind: str) -> str | None:
    """What to do where the values of a label's field are of another kind of task; None where they may be labels."""
    present = [value for value in values if value is not None]
    if not present or kind == REGRESSION:
        return None
    if any(isinstance(value, dict) for value in present):
        return f"give the likeliest name of each, or one number with --kind {REGRESSION}"
    if any(isinstance(value, list | tuple) for value in present) and kind not in (TOKEN_CLASSIFICATION, MULTI_LABEL):
        several = f"--kind {MULTI_LABEL} several of one text"
        return f"--kind {TOKEN_CLASSIFICATION} has a list of labels, one for each word; {several}"
    if all(
        isinstance(value, datetime.date | datetime.time | datetime.timedelta) or _is_date(value) for value in present
    ):
        return f"a date is no class: give the year or the weekday, or a number of days with --kind {REGRESSION}; {KEEP}"
    if any(map(_is_measured, present)) and all(
        isinstance(value, float | int) or _is_number(value) for value in present
    ):
        return f"--kind {REGRESSION} is for numbers such as probabilities; {KEEP}"
    return None


def _is_date(value: Any) -> bool:
    return isinstance(value, str) and _DATE.fullmatch(value) is not None


def _is_number(value: Any) -> bool:
    return isinstance(value, str) and _NUMBER.fullmatch(value) is not None


def _is_measured(value: Any) -> bool:
    """Whether a number has a fraction."""
    if isinstance(value, float):
        return math.isfinite(value) and not value.is_integer()
    return isinstance(value, str) and _MEASURED.fullmatch(value) is not None


def number(value: Any) -> float:
    """The label of a regression; raises `DataError` for what is no finite number."""
    text = value.strip() if isinstance(value, str) else None
    fits = not isinstance(value, bool) and (text is None or _NUMBER.fullmatch(text))
    try:
        found = float(value) if fits else math.nan
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if math.isfinite(found):
        return found
    comma = text is not None and _NUMBER.fullmatch(text.replace(",", ".", 1))
    fix = "write a decimal point, not a comma" if comma else None
    raise DataError("the label of a regression must be a finite number", found=repr(value)[:80], fix=fix)
