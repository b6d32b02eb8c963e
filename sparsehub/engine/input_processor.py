"""From the inputs of a request to rows in the scheduler's queue: checked, tokenised, queued."""

from __future__ import annotations

import dataclasses
import functools
import threading
import time
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from sparsehub.engine.batch_rows import QueuedRow
from sparsehub.engine.fair_share import Flow
from sparsehub.engine.health import EngineHealth
from sparsehub.engine.input_bounds import bounded_row, chunks
from sparsehub.engine.pending_request import AcquiredTask, PendingRequest, PreparedRequest
from sparsehub.engine.residency import Residency
from sparsehub.engine.scheduler import Item, Scheduler
from sparsehub.engine.task_handle import TaskHandle
from sparsehub.errors import DataError, RequestError, SparsehubError
from sparsehub.package.encoding import Encoded, encode, encode_ids, is_blank, is_broken
from sparsehub.package.task_spec import (
    EMBEDDING,
    MULTIPLE_CHOICE,
    PROBLEM_TYPES,
    TEXT_CLASSIFICATION,
    TEXT_GENERATION,
    TOKEN_CLASSIFICATION,
    TaskSpec,
)

Row = Mapping[str, Any]
KnownRows = dict[Hashable, list[Encoded]]  # of one request, by `reading_of`: rows that were tokenised for a task of it
UNBOUNDED_CHARACTERS = 1024  # a row of fewer is tokenised as it is, before any bound is looked for
TURN_SECONDS = 0.001


class InputProcessor:
    """Checks, tokenises and queues the rows of requests, in the caller's thread; `Engine` calls it.

    max_tokens: of one sequence of the backbone.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        residency: Residency,
        health: EngineHealth,
        tokenizer: Any,
        max_tokens: int,
    ):
        self._scheduler, self._residency, self._tokenizer = scheduler, residency, tokenizer
        self._health, self._max_tokens = health, max_tokens
        self._tokenizer_lock = threading.Lock()  # fast tokenizers keep their truncation settings inside

    def prepare(
        self,
        acquired: AcquiredTask | None,
        inputs: Sequence[Any],
        *,
        embed: bool,
        truncate: bool | int,
        timeout: float | None,
        known: KnownRows | None = None,
    ) -> PreparedRequest:
        """Check and tokenise inputs; `Engine.prepare` says what it raises. acquired: None for the plain backbone."""
        spec, kept = self._spec(acquired, embed), {} if known is None else known
        encoded = self._token_ids if embed and _are_token_ids(inputs) else self._encode
        reads = reading_of(spec, inputs)
        rows = kept[reads] if reads in kept else kept.setdefault(reads, encoded(spec, inputs, truncate))
        self._health.check()
        return PreparedRequest(acquired and acquired.share(), timeout, rows, embed)

    def submit(self, requests: Sequence[PreparedRequest]) -> list[PendingRequest[Any]]:
        """Queue all rows of all requests or none, each with its own reference to its task; raises `QueueFullError`."""
        queued = [_items(prepared, prepared.handle) for prepared in requests]
        every = [item for items in queued for item in items]
        for prepared, items in zip(requests, queued, strict=True):
            if (handle := prepared.handle) is not None:
                self._residency.hold(handle, len(items))
                for item in items:
                    item.future.add_done_callback(functools.partial(_release, self._residency, handle))
        try:
            self._scheduler.submit(every)
        except SparsehubError:
            for item in every:
                item.future.cancel()  # releases its reference
            raise
        for prepared in requests:  # where its load failed before its rows were in the queue
            if (handle := prepared.handle) is not None and handle.error is not None:
                self._residency.announce(handle)
        return [
            PendingRequest([item.future for item in items], prepared.task, prepared.tokens)
            for prepared, items in zip(requests, queued, strict=True)
        ]

    def _spec(self, acquired: AcquiredTask | None, embed: bool) -> TaskSpec:
        """What the rows must look like; raises `RequestError` for a task that generates text, or gives vectors
        where none are wanted."""
        if acquired is None:
            return text_spec(self._max_tokens)
        info = acquired.info
        if info.spec.kind == TEXT_GENERATION and not embed:
            raise RequestError(f"{info.reference} generates text", fix="post to /v1/completions")
        if info.spec.kind == EMBEDDING and not embed:
            raise RequestError(f"{info.reference} gives vectors", fix="post to /v1/embeddings, /v1/score or /v1/rerank")
        return text_spec(info.spec.max_length) if embed else info.spec

    def _encode(self, task: TaskSpec, inputs: Sequence[Any], truncate: bool | int) -> list[Encoded]:
        """Tokenise inputs; raises `RequestError`, which names the input that is wrong."""
        rows, limit = rows_of(task, inputs), self._limit(task, truncate)
        if limit != task.max_length:
            task = dataclasses.replace(task, max_length=limit)
        if sum(map(_characters, rows)) <= UNBOUNDED_CHARACTERS:  # as nearly all are
            with self._tokenizer_lock:
                return self._encode_chunk(task, rows, 0, bool(truncate))
        encoded: list[Encoded] = []
        for chunk in chunks(rows):
            if encoded:
                time.sleep(TURN_SECONDS)  # a thread that waits for the tokenizer gets it now
            with self._tokenizer_lock:
                encoded += self._encode_chunk(task, chunk, len(encoded), bool(truncate))
        return encoded

    def _encode_chunk(self, task: TaskSpec, rows: Sequence[Row], first: int, truncate: bool) -> list[Encoded]:
        """first: the place of the first of these rows in the request, for errors."""
        limit = task.max_length
        try:
            bounded = [
                bounded_row(task, self._tokenizer, row, place, truncate=truncate)
                if _characters(row) > UNBOUNDED_CHARACTERS
                else row
                for place, row in enumerate(rows, first)
            ]
            encoded = encode(task, self._tokenizer, bounded, truncate=truncate)
        except DataError as error:
            raise RequestError(str(error)) from error
        if truncate and any(row.length > limit for row in encoded):
            raise RequestError("truncate_prompt_tokens leaves no room for the special tokens", found=limit)
        check_length(encoded, limit, first)
        return encoded

    def _token_ids(self, task: TaskSpec, inputs: Sequence[Sequence[int]], truncate: bool | int) -> list[Encoded]:
        """Rows of token ids, which stay as they are: no special tokens are added. Raises `RequestError`."""
        limit, tokens = self._limit(task, truncate), len(self._tokenizer)
        for place, ids in enumerate(inputs):
            if any(not 0 <= token < tokens for token in ids):
                found = next(token for token in ids if not 0 <= token < tokens)
                problem = f"input {place} holds a token that the backbone does not have"
                raise RequestError(problem, found=found, expected=f"0 to {tokens - 1}")
        encoded = [encode_ids(self._tokenizer, ids, limit if truncate else None) for ids in inputs]
        check_length(encoded, limit)
        return encoded

    def _limit(self, task: TaskSpec, truncate: bool | int) -> int:
        """Tokens that a row may have. As vLLM does, it refuses to cut at more than that."""
        limit = min(task.max_length, self._max_tokens)
        if isinstance(truncate, bool):
            return limit
        if truncate > limit:
            expected = f"at most {limit}, or -1 for as many as that"
            raise RequestError("truncate_prompt_tokens is too large", found=truncate, expected=expected)
        return truncate


def _release(residency: Residency, handle: TaskHandle, _: object) -> None:
    residency.release(handle)


def reading_of(task: TaskSpec, inputs: Sequence[Any]) -> Hashable:
    """Equal for tasks that make the same token ids of these inputs: they read the same fields, whose names do not
    matter where the inputs have none, in the same way, up to the same length."""
    fields: Hashable = (task.text_fields, task.choice_fields)
    if not any(isinstance(item, Mapping) for item in inputs):
        fields = len(task.text_fields), len(task.choice_fields)
    words = task.kind if task.kind in (TOKEN_CLASSIFICATION, MULTIPLE_CHOICE) else ""
    return fields, words, task.reads_alone, task.max_length


def _items(prepared: PreparedRequest, handle: TaskHandle | None) -> list[Item]:
    """The scheduler's items, one for each row."""
    deadline = None if prepared.timeout is None else time.monotonic() + prepared.timeout
    digest = None if handle is None else handle.task.digest
    key, flow = (digest, prepared.embed), Flow(prepared.tenant, digest)
    return [
        Item(
            key,
            row.length,
            QueuedRow(row, handle, prepared.embed),
            len(row.sequences),
            deadline,
            text=row.keys,
            flow=flow,
        )
        for row in prepared.rows
    ]


def _are_token_ids(inputs: Sequence[Any]) -> bool:
    lists = bool(inputs) and all(isinstance(item, list | tuple) for item in inputs)
    return lists and all(isinstance(token, int) and not isinstance(token, bool) for item in inputs for token in item)


def _characters(row: Row) -> int:
    """Of a row whose form was checked; a word counts one more, so that a list of empty ones is long too."""
    return sum(len(value) if isinstance(value, str) else len(value) + sum(map(len, value)) for value in row.values())


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
            f"input {place} has other fields", found=", ".join(map(str, row))[:300], expected=", ".join(fields)
        )
    for field in fields:
        value = row[field]
        words = task.kind == TOKEN_CLASSIFICATION and isinstance(value, list)
        strings = value if words else [value]
        if not all(isinstance(text, str) for text in strings):
            raise RequestError(f"input {place}: {field!r} is no text", found=type(value).__name__, expected="a string")
        if is_blank(value):
            raise RequestError(f"input {place}: {field!r} is empty", expected="some text")
        for text in strings:
            check_text(f"input {place}: {field!r}", text)
    return row


def check_text(what: str, text: str) -> None:
    """Raise `RequestError` for a string that UTF-8 and tokenizers cannot take. what: names it in the error."""
    if is_broken(text):
        raise RequestError(f"{what} is no text", found="half of a surrogate pair")


def check_length(rows: Sequence[Encoded], limit: int, first: int = 0) -> None:
    """Raise `RequestError` for a row of more than `limit` tokens, or of none. first: the first row's place."""
    for place, row in enumerate(rows, first):
        if row.length > limit:
            raise RequestError(
                f"input {place} is too long",
                found=f"{row.length} tokens",
                expected=f"at most {limit}",
                fix='shorten it, or send "truncate_prompt_tokens": -1 to have it cut',
            )
        if row.length == 0:
            raise RequestError(f"input {place} has no tokens", expected="some text")


@functools.lru_cache(maxsize=64)
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
