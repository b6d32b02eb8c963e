"""Where requests for rows become work that waits: tokenised, checked, held, queued."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Sequence
from typing import Any

from sparsehub.engine.batch_rows import QueuedRow
from sparsehub.engine.health import EngineHealth
from sparsehub.engine.inputs import check_length, rows_of, text_spec
from sparsehub.engine.pending_request import Admit, PendingRequest
from sparsehub.engine.residency import Residency
from sparsehub.engine.scheduler import Item, Scheduler
from sparsehub.engine.task_handle import LOAD_SECONDS, TaskHandle
from sparsehub.engine.task_registry import Task, TaskInfo
from sparsehub.errors import DataError, RequestError, SparsehubError
from sparsehub.package.encoding import Encoded, encode
from sparsehub.package.manifest import TEXT_GENERATION, TaskSpec


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

    def ask(
        self, task: Task, inputs: Sequence[Any], truncate: bool, timeout: float | None, admit: Admit, *, embed: bool
    ) -> PendingRequest[Any]:
        """One future per input, of a task; `Engine.classify` and `Engine.embed` say what it raises."""
        handle = self._residency.acquire(task)  # its weights come while its rows are tokenised
        try:
            info = self._residency.info(task.digest) or handle.wait(timeout or LOAD_SECONDS).info
            if info.spec.kind == TEXT_GENERATION and not embed:
                raise RequestError(f"{info.reference} generates text", fix="post to /v1/completions")
            spec = text_spec(info.spec.max_length) if embed else info.spec
            return self._submit(info, handle, self._encode(spec, inputs, truncate), embed, timeout, admit)
        finally:
            self._residency.release(handle)

    def embed(self, texts: Sequence[Any], truncate: bool, timeout: float | None, admit: Admit) -> PendingRequest[Any]:
        """One future per text, of the plain backbone."""
        rows = self._encode(text_spec(self._max_tokens), texts, truncate)
        return self._submit(None, None, rows, True, timeout, admit)

    def _encode(self, task: TaskSpec, inputs: Sequence[Any], truncate: bool) -> list[Encoded]:
        rows = rows_of(task, inputs)
        task = dataclasses.replace(task, max_length=min(task.max_length, self._max_tokens))
        try:
            with self._tokenizer_lock:
                encoded = encode(task, self._tokenizer, rows, truncate=truncate)
        except DataError as error:
            raise RequestError(str(error)) from error
        check_length(encoded, task.max_length)
        return encoded

    def _submit(
        self,
        info: TaskInfo | None,
        handle: TaskHandle | None,
        rows: list[Encoded],
        embed: bool,
        timeout: float | None,
        admit: Admit,
    ) -> PendingRequest[Any]:
        self._health.check()
        tokens = sum(row.tokens for row in rows)
        admit(tokens)
        deadline = None if timeout is None else time.monotonic() + timeout
        key = (info.digest if info is not None else None, embed)
        items = [Item(key, row.length, QueuedRow(row, handle, embed), len(row.sequences), deadline) for row in rows]
        if handle is not None:
            self._residency.hold(handle, len(items))
            for item in items:
                item.future.add_done_callback(lambda _: self._residency.release(handle))
        try:
            self._scheduler.submit(items)
        except SparsehubError:
            for item in items:
                item.future.cancel()  # gives back what they hold
            raise
        if handle is not None and handle.error is not None:  # its load failed before its rows were in the queue
            self._residency.announce(handle)
        return PendingRequest([item.future for item in items], info, tokens)
