"""Inputs of requests: turned into rows by field name, and checked for what a model would not notice."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from sparsehub.errors import RequestError
from sparsehub.package.encoding import Encoded
from sparsehub.package.manifest import (
    MULTIPLE_CHOICE,
    PROBLEM_TYPES,
    TEXT_CLASSIFICATION,
    TOKEN_CLASSIFICATION,
    TaskSpec,
)

Row = Mapping[str, Any]
_SURROGATE = re.compile("[\ud800-\udfff]")  # half of a pair: JSON can hold one, UTF-8 and tokenizers cannot


def rows_of(task: TaskSpec, inputs: Sequence[Any]) -> list[Row]:
    """One row per input: a string, two strings for a pair, or an object with the task's fields.

    Raises `RequestError`, which names the place of the input.
    """
    if not inputs:
        raise RequestError("the input is empty", expected="at least one item")
    return [_row(task, item, place) for place, item in enumerate(inputs)]


def _row(task: TaskSpec, item: Any, place: int) -> Row:
    fields = (*task.text_fields, *task.choice_fields)
    if isinstance(item, Mapping):
        return _checked(task, item, fields, place)
    if len(fields) == 1:
        return _checked(task, {fields[0]: item}, fields, place)
    if isinstance(item, list | tuple) and len(item) == len(fields) and task.kind != MULTIPLE_CHOICE:
        return _checked(task, dict(zip(fields, item, strict=True)), fields, place)
    pair = " or a list of two strings" if len(fields) == 2 else ""
    raise RequestError(
        f"input {place} does not fit this task",
        found=type(item).__name__,
        expected=f"an object with {', '.join(fields)}{pair}",
    )


def _checked(task: TaskSpec, row: Row, fields: Sequence[str], place: int) -> Row:
    if set(row) != set(fields):
        raise RequestError(
            f"input {place} has other fields", found=", ".join(map(str, row)), expected=", ".join(fields)
        )
    for field in fields:
        value = row[field]
        words = task.kind == TOKEN_CLASSIFICATION and isinstance(value, list)
        strings = value if words else [value]
        if not all(isinstance(text, str) for text in strings):
            raise RequestError(f"input {place}: {field!r} is no text", found=type(value).__name__, expected="a string")
        if not strings or any(not text.strip() for text in strings):
            raise RequestError(f"input {place}: {field!r} is empty", expected="some text")
        for text in strings:
            check_text(f"input {place}: {field!r}", text)
    return row


def check_text(what: str, text: str) -> None:
    """Raise `RequestError` for a string that UTF-8 and tokenizers cannot take. what: names it in the error."""
    if _SURROGATE.search(text):
        raise RequestError(f"{what} is no text", found="half of a surrogate pair")


def check_length(rows: Sequence[Encoded], limit: int) -> None:
    """Raise `RequestError` for a row of more than `limit` tokens, or of none."""
    for place, row in enumerate(rows):
        if row.length > limit:
            raise RequestError(
                f"input {place} is too long",
                found=f"{row.length} tokens",
                expected=f"at most {limit}",
                fix='shorten it, or send "truncate_prompt_tokens": -1 to have it cut',
            )
        if row.length == 0:
            raise RequestError(f"input {place} has no tokens", expected="some text")


def text_spec(max_length: int) -> TaskSpec:
    """The task spec of embeddings: a row is one text. max_length: in tokens."""
    return TaskSpec(
        kind=TEXT_CLASSIFICATION,
        labels=(),
        problem_type=PROBLEM_TYPES[TEXT_CLASSIFICATION],
        text_fields=("input",),
        label_field="",
        max_length=max_length,
        metrics=(),
    )
