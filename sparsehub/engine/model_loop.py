"""The model loop: one thread that takes batches from the scheduler, runs them and answers their rows."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sparsehub.engine.arena_manager import ArenaManager
from sparsehub.engine.batch_planner import BatchPlanner, ExecutionPlan
from sparsehub.engine.batch_rows import BatchPart, BatchRows, by_task, keys_of, resident_rows
from sparsehub.engine.batch_runner import BatchRunner, Clock
from sparsehub.engine.cost_model import SWAP
from sparsehub.engine.scheduler import Item, Scheduler
from sparsehub.engine.stats import BatchObserver, BatchReport, BatchShare, TenantShare
from sparsehub.engine.task_handle import TaskHandle
from sparsehub.errors import NotFiniteError, RequestError, SparsehubError, StoppingError, UnhealthyError
from sparsehub.kernels.openmp import release_threads
from sparsehub.package.encoding import Encoded

IDLE_SECONDS = 0.5  # how often an idle model thread looks whether it should end


@dataclass(frozen=True)
class _FinishedBatch:
    """A batch that has run, and is not answered yet."""

    plan: ExecutionPlan
    parts: Sequence[BatchPart]
    results: Sequence[Sequence[Any]]  # of each part, a result or an error per row
    clock: Clock
    switches: int  # times that the arena's weights changed


class ModelLoop:
    """Runs the batches of an `Engine`, which starts and stops it; the only taker of the scheduler's batches.

    observer: told of every batch in the model's thread.
    """

    def __init__(
        self,
        arena: ArenaManager,
        scheduler: Scheduler,
        planner: BatchPlanner,
        runner: BatchRunner,
        observer: BatchObserver | None,
    ):
        self._arena, self._scheduler, self._planner, self._runner = arena, scheduler, planner, runner
        self._observer = observer
        self._thread: threading.Thread | None = None
        self.takes_work = True  # until `stop` is called, or the thread ends with an error

    def start(self) -> None:
        """Measure what batches cost here, then run `step` in a thread of its own until `stop`."""
        _ = self._planner.costs
        self._thread = threading.Thread(target=self._run_until_stopped, name="sparsehub-model", daemon=True)
        self._thread.start()

    def stop(self, drain: float) -> None:
        """Take no more rows, and finish what waits for up to `drain` seconds."""
        self.takes_work = False
        self._scheduler.close()
        if self._thread is not None:
            self._thread.join(drain)
        self._scheduler.fail(StoppingError("the engine stopped before this row ran"))

    def task_loaded(self, handle: TaskHandle) -> None:
        """Let the rows of a task run, or answer them with the error of its load; `Residency` calls it."""
        if handle.error is not None:
            self._scheduler.fail(handle.error, keys_of(handle.task.digest))
        self._scheduler.wake()

    def _run_until_stopped(self) -> None:
        try:
            while self.takes_work or self._scheduler.waiting:
                self.step(IDLE_SECONDS)
        except BaseException as error:  # no one would take the rows that wait, nor those that come
            self.takes_work = False
            self._scheduler.close()
            self._scheduler.fail(UnhealthyError("the model thread ended", found=repr(error), fix="restart it"))
            raise

    def step(self, timeout: float | None) -> bool:
        """Take the next batch, keep the rows whose tasks are resident, run it, answer. False where nothing came within
        `timeout` seconds."""
        self._arena.check_if_due()
        taken = self._scheduler.next_batch(timeout)
        if not taken:
            release_threads()
        start = time.monotonic()
        if (done := self._run(taken)) is None:
            return bool(taken)
        report = _answer(done)
        self._scheduler.note(report.tokens, time.monotonic() - start)
        if self._observer is not None:
            self._observer.observe(report)
        return True

    def _run(self, taken: Sequence[Item]) -> _FinishedBatch | None:
        """Run the rows whose tasks are resident in the way that the planner chooses; None where there are none."""
        if not taken:
            return None
        _ = self._planner.costs  # measured before the lock is taken, which measuring takes itself
        clock = Clock()
        with self._arena.lock:  # from here on no task is taken away, not even one whose weights are damaged
            if not (batch := resident_rows(taken)):
                return None
            moves = self._arena.swap.moves
            parts = sorted(by_task(batch), key=lambda part: self._planner.position(part.rows))
            plan = self._planner.plan([part.rows for part in parts])
            results = self._results(plan, parts, clock)
            self._arena.note_active([h for i in batch if (h := i.payload.handle) is not None])
            if any(isinstance(result, NotFiniteError) for part in results for result in part):
                self._arena.suspect()
            return _FinishedBatch(plan, parts, results, clock, self._arena.swap.moves - moves)

    def _results(self, plan: ExecutionPlan, parts: Sequence[BatchPart], clock: Clock) -> list[list[Any]]:
        """Each part's results or errors, in order."""
        try:
            results = self._runner.run(plan.mode, [part.rows for part in parts], clock, plan.trunk)
            self._planner.learn(plan, clock.backbone)
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
            return self._runner.run(SWAP, [BatchRows([row], rows.task, rows.embed)], Clock())[0][0]
        except SparsehubError as error:
            return error
        except Exception as error:
            return RequestError("the model failed on this input", found=f"{type(error).__name__}: {error}"[:300])


def _answer(done: _FinishedBatch) -> BatchReport:
    """Set every row's result or error, and say what the batch was."""
    start, laps = done.clock.start, done.clock.laps
    queued = start - min(item.arrived for part in done.parts for item in part.items)
    shares = tuple(_answer_part(part, its, start) for part, its in zip(done.parts, done.results, strict=True))
    tokens = sum(part.rows.group.tokens for part in done.parts)
    return BatchReport(
        done.plan.mode,
        shares,
        tokens,
        queued,
        done.switches,
        laps["switch"],
        laps["forward"],
        laps["head"],
        done.plan.predictions,
        _tenants([item for part in done.parts for item in part.items], start),
    )


def _tenants(items: Sequence[Item], start: float) -> tuple[TenantShare, ...]:
    """Each tenant's part of a batch."""
    found: dict[str, list[Item]] = {}
    for item in items:
        found.setdefault(item.flow.tenant.name, []).append(item)
    return tuple(TenantShare(name, len(own), sum(start - item.arrived for item in own)) for name, own in found.items())


def _answer_part(part: BatchPart, results: Sequence[Any], start: float) -> BatchShare:
    """Set the results of one task's rows, and count them. start: of the batch, on the monotonic clock."""
    failed = sum(_set(item, result) for item, result in zip(part.items, results, strict=True))
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


def _set(item: Item, result: Any) -> bool:
    """Set a row's result or error; whether it was an error."""
    if isinstance(result, BaseException):
        item.future.set_exception(result)
        return True
    item.future.set_result(result)
    return False
