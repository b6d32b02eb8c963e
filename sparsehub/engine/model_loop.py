"""The model thread: take a batch, run it, answer; and look at the arena now and then."""

from __future__ import annotations

import functools
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sparsehub.engine.arena_manager import ArenaManager
from sparsehub.engine.batch_runner import AUTO, BatchRows, BatchRunner, Clock, ExecutionPlan
from sparsehub.engine.cost_model import CalibrationPoints, CostModel
from sparsehub.engine.resident import Resident
from sparsehub.engine.scheduler import Item, Scheduler
from sparsehub.engine.stats import BatchReport, BatchShare
from sparsehub.engine.task_handle import TaskHandle
from sparsehub.errors import CancelledError, RequestError, SparsehubError, StoppingError, UnhealthyError
from sparsehub.package.encoding import Encoded

IDLE_SECONDS = 0.5  # how often an idle model thread looks whether it should end


@dataclass(frozen=True)
class QueuedRow:
    """What a queued row carries. handle None: the plain backbone; embed: pooled states are wanted, not the head."""

    row: Encoded
    handle: TaskHandle | None
    embed: bool


@dataclass(frozen=True)
class _Part:
    """The rows of one task in a batch, and whom they belong to."""

    rows: BatchRows
    items: Sequence[Item]


class ModelLoop:
    """measure: the cost model's points, called once, with the lock held and the base weights in the arena."""

    def __init__(
        self,
        arena: ArenaManager,
        runner: BatchRunner,
        scheduler: Scheduler,
        measure: Callable[[], CalibrationPoints],
        observe: Callable[[BatchReport], None],
    ):
        self._arena, self._runner, self._scheduler = arena, runner, scheduler
        self._measure, self._observe = measure, observe
        self.mode = AUTO
        self._thread: threading.Thread | None = None
        self._stopping = False

    @property
    def takes_work(self) -> bool:
        """Whether nobody said stop and a started thread still runs."""
        return not self._stopping and (self._thread is None or self._thread.is_alive())

    @functools.cached_property
    def costs(self) -> CostModel:
        """Measured when it is first wanted."""
        with self._arena.lock:
            self._arena.swap.to(None)
            return CostModel(self._measure())

    def cost_per_token(self, batch: Sequence[Item]) -> float:
        """Seconds of a batch that could be run, for each of its tokens that is no padding; without end where every row
        was cancelled at this moment, and its task let go."""
        parts = [part.rows for part in _by_task(batch)]
        if not parts:
            return math.inf
        parts.sort(key=self._runner.place)
        choice = self._runner.choose(parts, self.costs, self.mode)
        return choice.predictions[choice.mode] / sum(row.tokens for rows in parts for row in rows.rows)

    def start(self) -> None:
        _ = self.costs
        self._thread = threading.Thread(target=self._run_until_stopped, name="sparsehub-model", daemon=True)
        self._thread.start()

    def stop(self, drain: float) -> None:
        """Take no more rows, and finish what waits for up to `drain` seconds."""
        self._stopping = True
        self._scheduler.close()
        if self._thread is not None:
            self._thread.join(drain)
        self._scheduler.fail(StoppingError("the engine stopped before this row ran"))

    def _run_until_stopped(self) -> None:
        try:
            while not (self._stopping and not self._scheduler.waiting):
                self.step(IDLE_SECONDS)
        except BaseException as error:  # nobody would take the rows that wait, nor those that come
            self._scheduler.close()
            self._scheduler.fail(UnhealthyError("the model thread ended", found=repr(error), fix="restart it"))
            raise

    def task_loaded(self, handle: TaskHandle) -> None:
        """Let the rows of a task run, or answer them with the error of its load."""
        if handle.error is not None:
            self._scheduler.fail(handle.error, lambda key: key[0] == handle.task.digest)
        self._scheduler.wake()

    def step(self, timeout: float | None) -> bool:
        """Take the next batch, run it in the cheapest way, answer. False where nothing came within `timeout`."""
        taken = self._scheduler.next_batch(timeout)
        self._arena.check_if_due()
        if not (batch := _with_task(taken)):
            return bool(taken)
        start = time.monotonic()
        report = self._run(batch)
        self._scheduler.note(report.tokens, time.monotonic() - start)
        self._observe(report)
        return True

    def _run(self, batch: list[Item]) -> BatchReport:
        costs, clock = self.costs, Clock()
        queued = clock.start - min(item.arrived for item in batch)
        with self._arena.lock:
            moves = self._arena.swap.moves
            parts = sorted(_by_task(batch), key=lambda part: self._runner.place(part.rows))
            choice = self._runner.choose([part.rows for part in parts], costs, self.mode)
            results = self._results(choice, parts, costs, clock)
            self._arena.note_active([h for i in batch if (h := i.payload.handle) is not None])
            moves = self._arena.swap.moves - moves
        shares = tuple(_share(part, answers, clock.start) for part, answers in zip(parts, results, strict=True))
        tokens = sum(part.rows.group.tokens for part in parts)
        laps = clock.laps
        return BatchReport(
            choice.mode,
            shares,
            tokens,
            queued,
            moves,
            laps["switch"],
            laps["forward"],
            laps["head"],
            choice.predictions,
        )

    def _results(
        self, choice: ExecutionPlan, parts: Sequence[_Part], costs: CostModel, clock: Clock
    ) -> list[list[Any]]:
        """Each part's results or errors, in order."""
        try:
            results = self._runner.run(choice.mode, [part.rows for part in parts], clock)
            costs.learn(choice.mode, choice.groups, clock.backbone, there=choice.there)
            return results
        except UnhealthyError as error:
            self._scheduler.fail(error)
            return [[error] * len(part.items) for part in parts]
        except Exception:  # whatever torch raised may be one row's fault: run each alone, a failed row fails alone
            alone = [[self._run_alone(part.rows, row) for row in part.rows.rows] for part in parts]
            clock.lap("forward")
            return alone

    def _run_alone(self, rows: BatchRows, row: Encoded) -> Any:
        try:
            return self._runner.run("swap", [BatchRows([row], rows.task, rows.embed)], Clock())[0][0]
        except SparsehubError as error:
            return error
        except Exception as error:
            return RequestError("the model failed on this input", found=f"{type(error).__name__}: {error}"[:300])


def _by_task(batch: Sequence[Item]) -> list[_Part]:
    """Rows of one key together, in the order in which the keys come; those whose task is not there are left out."""
    found: dict[Any, tuple[Resident | None, list[Item]]] = {}
    for item in batch:
        handle = item.payload.handle
        task = handle.resident if handle is not None else None
        if handle is None or task is not None:
            found.setdefault(item.key, (task, []))[1].append(item)
    return [
        _Part(BatchRows([item.payload.row for item in items], task, items[0].payload.embed), items)
        for task, items in found.values()
    ]


def _with_task(batch: Sequence[Item]) -> list[Item]:
    """The rows of a batch that can run. One that was queued while its load failed may come when another request has
    loaded the task again: it holds nothing, and is told why."""
    able = []
    for item in batch:
        handle = item.payload.handle
        if handle is None or handle.resident is not None:
            able.append(item)
        else:
            item.future.set_exception(handle.error or CancelledError(f"{handle.task.reference} is gone"))
    return able


def _share(part: _Part, results: Sequence[Any], start: float) -> BatchShare:
    """Hand each result to whoever waits, and count them. start: of the batch."""
    failed = sum(_answer(item, result) for item, result in zip(part.items, results, strict=True))
    info, handle = part.rows.task.info if part.rows.task is not None else None, part.items[0].payload.handle
    ready = handle.ready_at if handle is not None else 0.0
    return BatchShare(
        info.name if info else "",
        info.digest if info else "",
        len(part.items),
        failed,
        sum(row.tokens for row in part.rows.rows),
        sum(start - item.arrived for item in part.items),
        sum(max(0.0, ready - item.arrived) for item in part.items),
    )


def _answer(item: Item, result: Any) -> bool:
    """Hand a result to whoever waits; returns whether it was an error."""
    if isinstance(result, BaseException):
        item.future.set_exception(result)
        return True
    item.future.set_result(result)
    return False
