"""What of a text is tokenised at all, so that the work grows with what a sequence can hold, not with what was sent.

A text that has more tokens than fit shows it within its first characters: those are tokenised, twice as many while
they are too few. What is cut, is cut so far behind the last token that is kept that it cannot change one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sparsehub.errors import RequestError
from sparsehub.package.encoding import text_ids, words_of
from sparsehub.package.task_spec import TOKEN_CLASSIFICATION, TaskSpec

Row = Mapping[str, Any]
MARGIN = 256  # tokens behind those that are kept: no tokenizer looks so far ahead
FIRST_CHARACTERS = 4  # for each token, of the first look at a text; a shorter one is tokenised whole
MOST_CHARACTERS = 32  # for each token; a text that needs more to fill a sequence is refused
CHUNK_CHARACTERS = 1 << 15  # tokenised in one go, while others wait for the tokenizer


def bounded_row(task: TaskSpec, tokenizer: Any, row: Row, place: int, *, truncate: bool) -> Row:
    """The row with what encoding it to `task.max_length` tokens needs of its texts; `place` names it in errors.

    Raises `RequestError` for a row that is too long to be kept whole (where it is not to be truncated) or to be cut
    without a look at all of it.
    """
    what = f"input {place}"
    if task.kind == TOKEN_CLASSIFICATION:
        return _bounded_words(task, row, what, truncate)
    fields = (*task.text_fields, *task.choice_fields)
    long = [field for field in fields if len(row[field]) > FIRST_CHARACTERS * (task.max_length + MARGIN)]
    if len(long) > 1 and truncate and not task.reads_alone:  # which of a pair is cut depends on all of both
        for field in long:
            check_characters(what, len(row[field]), task.max_length)
        return row
    return {**row, **{field: _bounded(tokenizer, row[field], task.max_length, what, truncate) for field in long}}


def check_prompt(tokenizer: Any, text: str, limit: int) -> None:
    """Raise `RequestError` for a text of far more tokens than `limit`; what lies just above it may pass."""
    _bounded(tokenizer, text, limit, "the prompt", False)


def check_characters(what: str, characters: int, limit: int) -> None:
    """Raise `RequestError` for more characters than are looked at for a sequence of `limit` tokens."""
    most = MOST_CHARACTERS * (limit + MARGIN)
    if characters > most:
        expected = f"at most {most} for {limit} tokens"
        raise RequestError(f"{what} is too long", found=f"{characters} characters", expected=expected, fix="shorten it")


def chunks(rows: Sequence[Row]) -> Iterator[list[Row]]:
    """The rows in their order, a few at a time: as many as have `CHUNK_CHARACTERS`, one at least."""
    chunk: list[Row] = []
    size = 0
    for row in rows:
        length = sum(len(text) for value in row.values() for text in ([value] if isinstance(value, str) else value))
        if chunk and size + length > CHUNK_CHARACTERS:
            yield chunk
            chunk, size = [], 0
        chunk.append(row)
        size += length
    yield chunk


def _bounded(tokenizer: Any, text: str, limit: int, what: str, truncate: bool) -> str:
    beginning = _beginning(tokenizer, text, limit, what)
    if len(beginning) < len(text) and not truncate:
        raise _too_long(what, f"{limit} tokens")
    return beginning


def _beginning(tokenizer: Any, text: str, limit: int, what: str) -> str:
    """The text, or where it is long the beginning that has `limit` tokens and a margin."""
    size = FIRST_CHARACTERS * (limit + MARGIN)
    if tokenizer.truncation_side != "right":  # it keeps the end
        check_characters(what, len(text), limit)
        return text
    while size < len(text):
        check_characters(what, size, limit)
        beginning = text[:size]
        if len(text_ids(tokenizer, beginning, whole=False)) >= limit + MARGIN:
            return beginning
        size *= 2
    return text


def _bounded_words(task: TaskSpec, row: Row, what: str, truncate: bool) -> Row:
    """The first words: each has a token at least, so those behind the limit are never kept."""
    (field,) = task.text_fields
    words = words_of(row, field)
    if len(words) > task.max_length and not truncate:
        raise _too_long(what, f"{task.max_length} tokens")
    kept = words[: task.max_length + 1]
    check_characters(what, sum(map(len, kept)), task.max_length)
    return {**row, field: kept} if len(kept) < len(words) else row


def _too_long(what: str, limit: str) -> RequestError:
    return RequestError(
        f"{what} is too long",
        found=f"more than {limit}",
        expected=f"at most {limit}",
        fix='shorten it, or send "truncate_prompt_tokens": -1 to have it cut',
    )
