"""The engine: one backbone, many tasks, one thread that runs batches."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch

from sparsehub.backbone import Backbone
from sparsehub.backbone.tokenizer import load_tokenizer, max_tokens
from sparsehub.engine.inputs import check_length, rows_of
from sparsehub.engine.pooling import pooling_of
from sparsehub.engine.scheduler import Item, Limits, Scheduler
from sparsehub.engine.swap import Swap
from sparsehub.engine.tasks import LoadedTask, TaskTable
from sparsehub.errors import CancelledError, DataError, RequestError, SparsehubError, UnhealthyError
from sparsehub.package import Package
from sparsehub.package.encoding import Encoded, collate, encode
from sparsehub.package.io import check_backbone
from sparsehub.package.manifest import PROBLEM_TYPES, TEXT_CLASSIFICATION, TaskSpec
from sparsehub.package.model import build_head
from sparsehub.package.outputs import Answer, answers
from sparsehub.patch import make_patch

IDLE_SECONDS = 0.5  # how often an idle model thread looks whether it should end
T = TypeVar("T")


@dataclass(frozen=True)
class BatchReport:
    """What one batch was and where its time went, in seconds. queued: of its oldest row; switched: the arena moved."""

    task: str
    digest: str
    rows: int
    tokens: int
    queued: float
    switched: bool
    switch: float
    forward: float
    head: float
    failed: int


@dataclass(frozen=True)
class _Work:
    """What a queued row carries. task None: the plain backbone; embed: pooled states are wanted, not the head."""

    row: Encoded
    task: LoadedTask | None
    embed: bool


@dataclass(frozen=True)
class Ticket(Generic[T]):
    """What a request gets at once. futures: one per input, in order; task: the very package that will answer."""

    futures: list[Future[T]]
    task: LoadedTask | None
    tokens: int


class Engine:
    """Serves tasks from one backbone. Any thread may submit; one thread runs `step` (see `start`).

    observe: called after every batch, in the model thread.
    """

    def __init__(
        self, backbone: Backbone, limits: Limits | None = None, observe: Callable[[BatchReport], None] = lambda _: None
    ):
        self.backbone = backbone
        self.tokenizer = load_tokenizer(backbone.checkpoint)
        self.tasks = TaskTable()
        self._scheduler = Scheduler(limits or Limits())
        self._swap = Swap(backbone.arena)
        self._arena_lock = threading.Lock()
        self._tokenizer_lock = threading.Lock()  # fast tokenizers keep their truncation settings inside
        self._pool = pooling_of(backbone.checkpoint.folder)
        self._observe = observe
        self._thread: threading.Thread | None = None
        self._stopping = False

    # tasks

    def add(self, package: Package) -> LoadedTask:
        """Serve a package. Raises `BackboneMismatchError` or `FormatError`, and changes nothing then."""
        check_backbone(package.manifest, self.backbone)
        head = build_head(self.backbone, package.manifest.task, package.head, self.tokenizer.pad_token_id)
        with self._arena_lock:
            self._swap.to(None)  # a patch saves base values, so none may be in the arena
            patch = make_patch(self.backbone, package.delta)
        task = LoadedTask(package.manifest, package.digest, patch, head)
        self.tasks.add(task)
        return task

    # requests

    def classify(
        self, reference: str, inputs: Sequence[Any], *, truncate: bool = False, timeout: float | None = None
    ) -> Ticket[Answer]:
        """One future per input, for a task of any kind; raises `RequestError`, `UnknownTaskError`, `QueueFullError`."""
        task = self.tasks.find(reference)
        rows = self._encode(task.manifest.task, inputs, truncate)
        return self._submit(task, [_Work(row, task, False) for row in rows], timeout)

    def embed(
        self, reference: str | None, texts: Sequence[Any], *, truncate: bool = False, timeout: float | None = None
    ) -> Ticket[list[float]]:
        """One future per text: a unit vector, from the task's weights or (None) from the plain backbone."""
        task = self.tasks.find(reference) if reference is not None else None
        spec = TaskSpec(
            kind=TEXT_CLASSIFICATION,
            labels=(),
            problem_type=PROBLEM_TYPES[TEXT_CLASSIFICATION],
            text_fields=("input",),
            label_field="",
            max_length=task.manifest.task.max_length if task else self.max_tokens,
            metrics=(),
        )
        return self._submit(task, [_Work(row, task, True) for row in self._encode(spec, texts, truncate)], timeout)

    @property
    def max_tokens(self) -> int:
        """Tokens that the plain backbone takes in one sequence."""
        return max_tokens(self.tokenizer, self.backbone.config)

    @property
    def waiting(self) -> int:
        return self._scheduler.waiting

    @property
    def healthy(self) -> bool:
        """Whether work is taken: the arena is known, nobody said stop, and a started model thread still runs."""
        running = self._thread is None or self._thread.is_alive()
        return self._swap.healthy and not self._stopping and running

    def _encode(self, task: TaskSpec, inputs: Sequence[Any], truncate: bool) -> list[Encoded]:
        rows = rows_of(task, inputs)
        task = dataclasses.replace(task, max_length=min(task.max_length, self.max_tokens))
        try:
            with self._tokenizer_lock:
                encoded = encode(task, self.tokenizer, rows, truncate=truncate)
        except DataError as error:
            raise RequestError(str(error)) from error
        check_length(encoded, task.max_length)
        return encoded

    def _submit(self, task: LoadedTask | None, works: Sequence[_Work], timeout: float | None) -> Ticket[Any]:
        if not self.healthy:
            raise UnhealthyError("the engine takes no more work", fix="restart it")
        deadline = None if timeout is None else time.monotonic() + timeout
        items = [
            Item(
                key=(work.task.digest if work.task else None, work.embed),
                length=work.row.length,
                payload=work,
                sequences=len(work.row.sequences),
                deadline=deadline,
            )
            for work in works
        ]
        self._scheduler.submit(items)
        return Ticket([item.future for item in items], task, sum(work.row.tokens for work in works))

    # the main loop

    def start(self) -> None:
        """Run `step` in a thread of its own until `stop`."""
        self._thread = threading.Thread(target=self._loop, name="sparsehub-model", daemon=True)
        self._thread.start()

    def stop(self, drain: float = 30.0) -> None:
        """Take no more rows, finish what waits for up to `drain` seconds, and leave the base weights in the arena."""
        self._stopping = True
        self._scheduler.close()
        if self._thread is not None:
            self._thread.join(drain)
        self._scheduler.fail_all(CancelledError("the engine stopped before this row ran"))
        with self._arena_lock:
            if self._swap.healthy:
                self._swap.to(None)

    def _loop(self) -> None:
        try:
            while not (self._stopping and not self._scheduler.waiting):
                self.step(IDLE_SECONDS)
        except BaseException as error:  # nobody would take the rows that wait, nor those that come
            self._scheduler.close()
            self._scheduler.fail_all(UnhealthyError("the model thread ended", found=repr(error), fix="restart it"))
            raise

    def step(self, timeout: float | None = 0.0) -> bool:
        """Take the next batch, make its task current, run it, answer. False where nothing came within `timeout`."""
        batch = self._scheduler.next_batch(timeout)
        if not batch:
            return False
        start = time.monotonic()
        report = self._run(batch)
        self._scheduler.note(report.tokens, time.monotonic() - start)
        self._observe(report)
        return True

    def _run(self, batch: list[Item]) -> BatchReport:
        clock = _Clock()
        queued = clock.start - batch[0].arrived
        task: LoadedTask | None = batch[0].payload.task
        with self._arena_lock:
            switched, failed = False, 0
            try:
                switched = self._swap.to(task.patch if task else None)
                clock.lap("switch")
                results: list[Any] = self._forward([item.payload for item in batch], clock)
            except UnhealthyError as error:
                results = [error] * len(batch)
                self._scheduler.fail_all(error)
            except Exception:  # whatever torch raised may be one row's fault: run each alone, a failed row fails alone
                results = [self._forward_alone(item.payload) for item in batch]
                clock.lap("forward")
        for item, result in zip(batch, results, strict=True):
            failed += _answer(item, result)
        name, digest = (task.manifest.name, task.digest) if task else ("", "")
        tokens = max(item.length for item in batch) * sum(item.sequences for item in batch)
        laps = clock.laps
        return BatchReport(
            name, digest, len(batch), tokens, queued, switched, laps["switch"], laps["forward"], laps["head"], failed
        )

    @torch.inference_mode()
    def _forward(self, works: list[_Work], clock: _Clock) -> list[Any]:
        rows = [work.row for work in works]
        batch = collate(self.tokenizer, rows, self.backbone.device)
        flat = {name: tensor.view(-1, tensor.shape[-1]) for name, tensor in batch.items()}
        outputs = self.backbone.module(**flat)
        clock.lap("forward")
        task = works[0].task
        if works[0].embed or task is None:
            results: list[Any] = self._pool(outputs.last_hidden_state, flat["attention_mask"]).tolist()
        else:
            results = list(answers(task.manifest.task, rows, task.head(batch, outputs)))
        clock.lap("head")
        return results

    def _forward_alone(self, work: _Work) -> Any:
        try:
            self._swap.to(work.task.patch if work.task else None)
            return self._forward([work], _Clock())[0]
        except SparsehubError as error:
            return error
        except Exception as error:
            return RequestError("the model failed on this input", found=f"{type(error).__name__}: {error}"[:300])


class _Clock:
    """Laps of one batch, in seconds."""

    def __init__(self) -> None:
        self.start = self._last = time.monotonic()
        self.laps = {"switch": 0.0, "forward": 0.0, "head": 0.0}

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self.laps[name] += now - self._last
        self._last = now


def _answer(item: Item, result: Any) -> bool:
    """Hand a result to whoever waits; returns whether it was an error."""
    if isinstance(result, BaseException):
        item.future.set_exception(result)
        return True
    item.future.set_result(result)
    return False
