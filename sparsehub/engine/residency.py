"""Where each task is now: on the device, in host memory, or only on disk; by byte budgets, least recently used first.

Whoever has rows of a task in the queue holds a reference to it, and nothing that is referenced is dropped. Loading
happens in threads of its own, beside the running batch.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from sparsehub.engine.holding import Budgets, Holding, Usage
from sparsehub.engine.report import TaskStatus
from sparsehub.engine.resident import HostTask, Resident
from sparsehub.engine.tasks import Task, TaskInfo
from sparsehub.errors import EngineError, SparsehubError, StoppingError, UsageError

WAIT_SECONDS = 0.1  # between two looks whether something may go


def _why(task: Task, error: Exception) -> SparsehubError:
    """What the rows of a task that could not be loaded are told. A disk without room or a policy that cannot be read
    is a usage error of whoever runs the engine, and not of who asks."""
    if isinstance(error, SparsehubError) and not isinstance(error, UsageError):
        return error
    found = str(error) if isinstance(error, UsageError) else f"{type(error).__name__}: {error}"
    return EngineError(f"{task.reference} cannot be loaded", found=found[:500])


class Residency:
    """Thread-safe.

    A task is counted once it is placed, so while `loaders` of them load, so many tasks may lie above the budget.

    read: a task's package into host memory; place: from there to the device; let_go: asks the model thread's side to
    give back what it holds without need (the patch that is still in the arena); loaded: called after every load.
    """

    def __init__(
        self,
        budgets: Budgets,
        read: Callable[[Task], HostTask],
        place: Callable[[HostTask], Resident],
        let_go: Callable[[], None] = lambda: None,
        loaded: Callable[[Holding], None] = lambda _: None,
    ):
        self._budgets = budgets
        self._read, self._place, self._let_go, self._loaded = read, place, let_go, loaded
        self._changed = threading.Condition()
        self._holdings: OrderedDict[str, Holding] = OrderedDict()  # by digest, least recently used first
        self._hosts: OrderedDict[str, HostTask] = OrderedDict()
        self._infos: dict[str, TaskInfo] = {}
        self._closed = False
        self._device_bytes = self._host_bytes = 0
        self._hits = self._misses = self._loads = self._evictions = 0
        self._loaders = ThreadPoolExecutor(budgets.loaders, thread_name_prefix="sparsehub-load")

    def info(self, digest: str) -> TaskInfo | None:
        """What is known of a task that was in memory before."""
        return self._infos.get(digest)

    def acquire(self, task: Task) -> Holding:
        """Hold a task, and begin to load it where it is not on the device."""
        with self._changed:
            holding = self._holdings.get(task.digest)
            if holding is None or holding.error is not None:  # what failed is tried again
                holding = self._holdings[task.digest] = Holding(task)
            holding.unwanted = False
            self._holdings.move_to_end(task.digest)
            holding.references += 1
            self._hits += holding.resident is not None
            self._misses += holding.resident is None
            if holding.resident is None and not holding.loading:
                holding.loading = True
                self._loaders.submit(self._load, holding)
        return holding

    def hold(self, holding: Holding, count: int = 1) -> None:
        """Hold what is held already `count` times more."""
        with self._changed:
            holding.references += count

    def release(self, holding: Holding) -> None:
        with self._changed:
            holding.references -= 1
            assert holding.references >= 0
            if holding.unwanted and not holding.references and not holding.loading:
                self._drop(holding)
            if holding.task.composed:
                self._drop_composed()
            self._changed.notify_all()

    def pin(self, task: Task) -> Holding:
        """Keep a task on the device whatever else is wanted."""
        holding = self.acquire(task)
        holding.pinned = True
        self.release(holding)
        return holding

    def unpin(self, digest: str) -> None:
        """Let a task that is in memory go when others need its room."""
        with self._changed:
            holding = self._holdings.get(digest)
            if holding is not None:
                holding.pinned = False
                self._changed.notify_all()

    def admit(self, task: Task, host: HostTask) -> Resident:
        """Put a task that was read elsewhere on the device now, pinned: there is nowhere to read it from again."""
        resident = self._place(host)
        with self._changed:
            holding = self._holdings.setdefault(task.digest, Holding(task))
            if holding.resident is None:
                self._make_room(resident.nbytes, holding)
                self._settle(holding, resident)
            holding.pinned = True
            assert holding.resident is not None  # just settled
            return holding.resident

    def forget(self, digest: str) -> None:
        """Drop a task that is served no longer as soon as nobody holds it."""
        with self._changed:
            holding = self._holdings.get(digest)
            if holding is not None:
                holding.pinned, holding.unwanted = False, True
                if not holding.references and not holding.loading:
                    self._drop(holding)
            host = self._hosts.pop(digest, None)
            self._host_bytes -= host.nbytes if host is not None else 0
            self._infos.pop(digest, None)

    def status(self, task: Task) -> TaskStatus:
        """Where a task is."""
        with self._changed:
            holding, info = self._holdings.get(task.digest), self._infos.get(task.digest)
            resident = holding.resident if holding is not None else None
            where = "host" if task.digest in self._hosts else "disk"
            if holding is not None:
                where = "device" if resident is not None else "loading"
            return TaskStatus(
                task,
                info,
                where,
                resident.nbytes if resident is not None else 0,
                holding is not None and holding.pinned,
                holding.references if holding is not None else 0,
                resident.why_swap if resident is not None else None,
            )

    def holding(self, digest: str) -> Holding | None:
        return self._holdings.get(digest)

    def usage(self) -> Usage:
        with self._changed:
            on_device = sum(holding.resident is not None for holding in self._holdings.values())
            return Usage(
                self._device_bytes,
                self._host_bytes,
                on_device,
                len(self._hosts),
                self._hits,
                self._misses,
                self._loads,
                self._evictions,
            )

    def close(self) -> None:
        """Load nothing more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._loaders.shutdown(wait=True, cancel_futures=True)

    def _load(self, holding: Holding) -> None:
        try:
            host = self._hosts.get(holding.task.digest) or self._read(holding.task)
            resident = self._place(host)
            with self._changed:
                self._make_room(resident.nbytes, holding)
                self._settle(holding, resident)
                self._keep_on_host(host, holding.task.composed)
        except Exception as error:  # a disk, a hub, a device: the task's rows fail, the engine goes on
            self._fail(holding, _why(holding.task, error))
        self._loaded(holding)

    def _settle(self, holding: Holding, resident: Resident) -> None:
        holding.resident, holding.loading, holding.ready_at = resident, False, time.monotonic()
        self._device_bytes += resident.nbytes
        self._loads += 1
        self._infos[holding.task.digest] = resident.info
        holding.ready.set()

    def _fail(self, holding: Holding, error: SparsehubError) -> None:
        with self._changed:
            holding.error, holding.loading = error, False
            if self._holdings.get(holding.task.digest) is holding:
                del self._holdings[holding.task.digest]
            holding.ready.set()

    def _make_room(self, nbytes: int, wanted: Holding) -> None:
        """Drop what is unused until `nbytes` fit; waits while all that could go is in use. The lock is held."""
        if nbytes > self._budgets.device_bytes:
            raise EngineError(
                f"{wanted.task.reference} is larger than the whole budget for tasks",
                found=f"{nbytes} bytes",
                expected=f"at most {self._budgets.device_bytes}",
                fix="raise the budget, or prune the delta",
            )
        asked = False
        while self._device_bytes + nbytes > self._budgets.device_bytes:
            victim = next((h for h in self._holdings.values() if self._may_go(h, wanted)), None)
            if victim is not None:
                self._drop(victim)
                self._evictions += 1
            elif not asked:
                asked = True
                self._without_lock(self._let_go)
            else:
                self._refuse_if_pinned(nbytes, wanted)
                if self._closed:
                    raise StoppingError
                self._changed.wait(WAIT_SECONDS)

    def _may_go(self, holding: Holding, wanted: Holding) -> bool:
        return holding.resident is not None and not holding.references and not holding.pinned and holding is not wanted

    def _refuse_if_pinned(self, nbytes: int, wanted: Holding) -> None:
        """Waiting ends when rows are answered; pinned tasks never go."""
        pinned = sum(h.resident.nbytes for h in self._holdings.values() if h.pinned and h.resident is not None)
        if pinned + nbytes > self._budgets.device_bytes:
            raise EngineError(
                f"{wanted.task.reference} does not fit beside the pinned tasks",
                found=f"{nbytes} bytes beside {pinned} pinned",
                expected=f"at most {self._budgets.device_bytes} in all",
                fix="raise the budget, or unpin a task",
            )

    def _drop_composed(self) -> None:
        """There is no end of compositions: the least recently used beyond a few go, with what is known of them."""
        idle = [h for h in self._holdings.values() if h.task.composed and h.resident is not None and not h.references]
        for holding in idle[: max(0, len(idle) - self._budgets.composed)]:
            self._drop(holding)
            self._infos.pop(holding.task.digest, None)

    def _without_lock(self, call: Callable[[], None]) -> None:
        self._changed.release()
        try:
            call()
        finally:
            self._changed.acquire()

    def _drop(self, holding: Holding) -> None:
        self._device_bytes -= holding.resident.nbytes if holding.resident is not None else 0
        holding.resident = None
        self._holdings.pop(holding.task.digest, None)
        self._changed.notify_all()

    def _keep_on_host(self, host: HostTask, composed: bool) -> None:
        """The budget of the host tier; what is larger than all of it is not kept."""
        if host.nbytes > self._budgets.host_bytes or composed:
            return
        before = self._hosts.pop(host.info.digest, None)
        self._host_bytes += host.nbytes - (before.nbytes if before is not None else 0)
        self._hosts[host.info.digest] = host
        while self._host_bytes > self._budgets.host_bytes:
            _, dropped = self._hosts.popitem(last=False)
            self._host_bytes -= dropped.nbytes
