"""Where requests for rows become work that waits: tokenised, checked, held, queued."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from sparsehub.engine.holding import LOAD_SECONDS, Holding
from sparsehub.engine.inputs import check_length, rows_of, text_spec
from sparsehub.engine.loop import Work
from sparsehub.engine.residency import Residency
from sparsehub.engine.scheduler import Item, Scheduler
from sparsehub.engine.tasks import Task, TaskInfo
from sparsehub.engine.ticket import Admit, Ticket
from sparsehub.errors import DataError, RequestError, SparsehubError
from sparsehub.package.encoding import Encoded, encode
from sparsehub.package.manifest import TEXT_GENERATION, TaskSpec


class Desk:
    """max_tokens: of one sequence of the backbone; check: raises where no work is taken; loaded: told of a task whose
    load failed before its rows were queued."""

    def __init__(
        self,
        scheduler: Scheduler,
        residency: Residency,
        tokenizer: Any,
        max_tokens: int,
        check: Callable[[], None],
        loaded: Callable[[Holding], None],
    ):
        self._scheduler, self._residency, self._tokenizer = scheduler, residency, tokenizer
        self._max_tokens, self._check, self._loaded = max_tokens, check, loaded
        self._tokenizer_lock = threading.Lock()  # fast tokenizers keep their truncation settings inside

    def ask(
        self, task: Task, inputs: Sequence[Any], truncate: bool, timeout: float | None, admit: Admit, *, embed: bool
    ) -> Ticket[Any]:
        """One future per input, of a task; `Engine.classify` and `Engine.embed` say what it raises."""
        holding = self._residency.acquire(task)  # its weights come while its rows are tokenised
        try:
            info = self._residency.info(task.digest) or holding.wait(timeout or LOAD_SECONDS).info
            if info.spec.kind == TEXT_GENERATION and not embed:
                raise RequestError(f"{info.reference} generates text", fix="post to /v1/completions")
            spec = text_spec(info.spec.max_length) if embed else info.spec
            return self._submit(info, holding, self._encode(spec, inputs, truncate), embed, timeout, admit)
        finally:
            self._residency.release(holding)

    def embed(self, texts: Sequence[Any], truncate: bool, timeout: float | None, admit: Admit) -> Ticket[Any]:
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
        holding: Holding | None,
        rows: list[Encoded],
        embed: bool,
        timeout: float | None,
        admit: Admit,
    ) -> Ticket[Any]:
        self._check()
        tokens = sum(row.tokens for row in rows)
        admit(tokens)
        deadline = None if timeout is None else time.monotonic() + timeout
        key = (info.digest if info is not None else None, embed)
        items = [Item(key, row.length, Work(row, holding, embed), len(row.sequences), deadline) for row in rows]
        if holding is not None:
            self._residency.hold(holding, len(items))
            for item in items:
                item.future.add_done_callback(lambda _: self._residency.release(holding))
        try:
            self._scheduler.submit(items)
        except SparsehubError:
            for item in items:
                item.future.cancel()  # gives back what they hold
            raise
        if holding is not None and holding.error is not None:  # its load failed before its rows were in the queue
            self._loaded(holding)
        return Ticket([item.future for item in items], info, tokens)
