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

from sparsehub.engine.resident import HostTask, Resident
from sparsehub.engine.stats import TaskStatus
from sparsehub.engine.task_handle import Budgets, TaskHandle, Usage
from sparsehub.engine.task_registry import Task, TaskInfo
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

    read: a task's package into host memory; place: from there to the device; let_go: asks the model thread's adapter to
    give back what it holds without need (the patch that is still in the arena); loaded: called after every load.
    """

    def __init__(
        self,
        budgets: Budgets,
        read: Callable[[Task], HostTask],
        place: Callable[[HostTask], Resident],
        let_go: Callable[[], None] = lambda: None,
        loaded: Callable[[TaskHandle], None] = lambda _: None,
    ):
        self._budgets = budgets
        self._read, self._place, self._let_go, self._loaded = read, place, let_go, loaded
        self._changed = threading.Condition()
        self._handles: OrderedDict[str, TaskHandle] = OrderedDict()  # by digest, least recently used first
        self._hosts: OrderedDict[str, HostTask] = OrderedDict()
        self._infos: dict[str, TaskInfo] = {}
        self._closed = False
        self._device_bytes = self._host_bytes = 0
        self._hits = self._misses = self._loads = self._evictions = 0
        self._loaders = ThreadPoolExecutor(budgets.loaders, thread_name_prefix="sparsehub-load")

    def info(self, digest: str) -> TaskInfo | None:
        """What is known of a task that was in memory before."""
        return self._infos.get(digest)

    def acquire(self, task: Task) -> TaskHandle:
        """Hold a task, and begin to load it where it is not on the device."""
        with self._changed:
            handle = self._handles.get(task.digest)
            if handle is None or handle.error is not None:  # what failed is tried again
                handle = self._handles[task.digest] = TaskHandle(task)
            handle.unwanted = False
            self._handles.move_to_end(task.digest)
            handle.references += 1
            self._hits += handle.resident is not None
            self._misses += handle.resident is None
            if handle.resident is None and not handle.loading:
                handle.loading = True
                self._loaders.submit(self._load, handle)
        return handle

    def hold(self, handle: TaskHandle, count: int = 1) -> None:
        """Hold what is held already `count` times more."""
        with self._changed:
            handle.references += count

    def release(self, handle: TaskHandle) -> None:
        with self._changed:
            handle.references -= 1
            assert handle.references >= 0
            if handle.unwanted and not handle.references and not handle.loading:
                self._drop(handle)
            if handle.task.composed:
                self._drop_composed()
            self._changed.notify_all()

    def pin(self, task: Task) -> TaskHandle:
        """Keep a task on the device whatever else is wanted."""
        handle = self.acquire(task)
        handle.pinned = True
        self.release(handle)
        return handle

    def unpin(self, digest: str) -> None:
        """Let a task that is in memory go when others need its room."""
        with self._changed:
            handle = self._handles.get(digest)
            if handle is not None:
                handle.pinned = False
                self._changed.notify_all()

    def admit(self, task: Task, host: HostTask) -> Resident:
        """Put a task that was read elsewhere on the device now, pinned: there is nowhere to read it from again."""
        resident = self._place(host)
        with self._changed:
            handle = self._handles.setdefault(task.digest, TaskHandle(task))
            if handle.resident is None:
                self._make_room(resident.nbytes, handle)
                self._settle(handle, resident)
            handle.pinned = True
            assert handle.resident is not None  # just settled
            return handle.resident

    def forget(self, digest: str) -> None:
        """Drop a task that is served no longer as soon as nobody holds it."""
        with self._changed:
            handle = self._handles.get(digest)
            if handle is not None:
                handle.pinned, handle.unwanted = False, True
                if not handle.references and not handle.loading:
                    self._drop(handle)
            host = self._hosts.pop(digest, None)
            self._host_bytes -= host.nbytes if host is not None else 0
            self._infos.pop(digest, None)

    def status(self, task: Task) -> TaskStatus:
        """Where a task is."""
        with self._changed:
            handle, info = self._handles.get(task.digest), self._infos.get(task.digest)
            resident = handle.resident if handle is not None else None
            where = "host" if task.digest in self._hosts else "disk"
            if handle is not None:
                where = "device" if resident is not None else "loading"
            return TaskStatus(
                task,
                info,
                where,
                resident.nbytes if resident is not None else 0,
                handle is not None and handle.pinned,
                handle.references if handle is not None else 0,
                resident.why_swap if resident is not None else None,
            )

    def handle(self, digest: str) -> TaskHandle | None:
        return self._handles.get(digest)

    def usage(self) -> Usage:
        with self._changed:
            on_device = sum(handle.resident is not None for handle in self._handles.values())
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

    def _load(self, handle: TaskHandle) -> None:
        try:
            host = self._hosts.get(handle.task.digest) or self._read(handle.task)
            resident = self._place(host)
            with self._changed:
                self._make_room(resident.nbytes, handle)
                self._settle(handle, resident)
                self._keep_on_host(host, handle.task.composed)
        except Exception as error:  # a disk, a hub, a device: the task's rows fail, the engine goes on
            self._fail(handle, _why(handle.task, error))
        self._loaded(handle)

    def _settle(self, handle: TaskHandle, resident: Resident) -> None:
        handle.resident, handle.loading, handle.ready_at = resident, False, time.monotonic()
        self._device_bytes += resident.nbytes
        self._loads += 1
        self._infos[handle.task.digest] = resident.info
        handle.ready.set()

    def _fail(self, handle: TaskHandle, error: SparsehubError) -> None:
        with self._changed:
            handle.error, handle.loading = error, False
            if self._handles.get(handle.task.digest) is handle:
                del self._handles[handle.task.digest]
            handle.ready.set()

    def _make_room(self, nbytes: int, wanted: TaskHandle) -> None:
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
            victim = next((h for h in self._handles.values() if self._may_go(h, wanted)), None)
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

    def _may_go(self, handle: TaskHandle, wanted: TaskHandle) -> bool:
        return handle.resident is not None and not handle.references and not handle.pinned and handle is not wanted

    def _refuse_if_pinned(self, nbytes: int, wanted: TaskHandle) -> None:
        """Waiting ends when rows are answered; pinned tasks never go."""
        pinned = sum(h.resident.nbytes for h in self._handles.values() if h.pinned and h.resident is not None)
        if pinned + nbytes > self._budgets.device_bytes:
            raise EngineError(
                f"{wanted.task.reference} does not fit beside the pinned tasks",
                found=f"{nbytes} bytes beside {pinned} pinned",
                expected=f"at most {self._budgets.device_bytes} in all",
                fix="raise the budget, or unpin a task",
            )

    def _drop_composed(self) -> None:
        """There is no end of compositions: the least recently used beyond a few go, with what is known of them."""
        idle = [h for h in self._handles.values() if h.task.composed and h.resident is not None and not h.references]
        for handle in idle[: max(0, len(idle) - self._budgets.composed)]:
            self._drop(handle)
            self._infos.pop(handle.task.digest, None)

    def _without_lock(self, call: Callable[[], None]) -> None:
        self._changed.release()
        try:
            call()
        finally:
            self._changed.acquire()

    def _drop(self, handle: TaskHandle) -> None:
        self._device_bytes -= handle.resident.nbytes if handle.resident is not None else 0
        handle.resident = None
        self._handles.pop(handle.task.digest, None)
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
