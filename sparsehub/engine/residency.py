"""Residency: which tasks are on the device, which in host memory and which only on disk, by byte budgets.

Tasks are evicted least recently used first. A task with rows that wait or run is referenced, and what is referenced is
never evicted. Tasks are loaded in threads of their own, beside the running batch.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor

from sparsehub.engine.arena_manager import ArenaManager
from sparsehub.engine.host_tier import HostTier
from sparsehub.engine.resident import HostTask, Resident
from sparsehub.engine.stats import TaskStatus
from sparsehub.engine.task_handle import Budgets, ResidencyListener, TaskHandle, Usage
from sparsehub.engine.task_loader import TaskLoader, load_error
from sparsehub.engine.task_registry import Task, TaskInfo
from sparsehub.errors import EngineError, SparsehubError, StoppingError

WAIT_SECONDS = 0.1  # between two looks whether something can be evicted


class Residency:
    """Loads tasks, counts their references and evicts them; `InputProcessor`, `Generator` and `Engine` acquire handles
    here. Thread-safe.

    A task's bytes count once it is on the device, so while `Budgets.loaders` tasks load, as many may lie above the
    budget.
    """

    def __init__(self, budgets: Budgets, loader: TaskLoader, arena: ArenaManager):
        self._budgets, self._loader, self._arena = budgets, loader, arena
        self._listeners: list[ResidencyListener] = []
        self._changed = threading.Condition()
        self._handles: OrderedDict[str, TaskHandle] = OrderedDict()  # by digest, least recently used first
        self._hosts = HostTier(budgets.host_bytes)
        self._infos: dict[str, TaskInfo] = {}
        self._closed = False
        self._device_bytes = 0
        self._hits = self._misses = self._loads = self._evictions = 0
        self._threads = ThreadPoolExecutor(budgets.loaders, thread_name_prefix="sparsehub-load")

    def add_listener(self, listener: ResidencyListener) -> None:
        """Tell a listener of every load from now on; before the first task is acquired."""
        self._listeners.append(listener)

    def announce(self, handle: TaskHandle) -> None:
        """Tell the listeners how a load has ended; again, where rows were queued after it had failed."""
        for listener in self._listeners:
            listener.task_loaded(handle)

    def info(self, digest: str) -> TaskInfo | None:
        """What is known of a task that was in memory before; None of others."""
        return self._infos.get(digest)

    def acquire(self, task: Task) -> TaskHandle:
        """Reference a task, and begin to load it where it is not on the device. The caller releases the handle."""
        with self._changed:
            handle = self._handles.get(task.digest)
            if handle is None or handle.error is not None:  # what failed is tried again
                handle = self._handles[task.digest] = TaskHandle(task, self)
            handle.unwanted = False
            self._handles.move_to_end(task.digest)
            handle.references += 1
            self._hits += handle.resident is not None
            self._misses += handle.resident is None
            if handle.resident is None and not handle.loading:
                handle.loading = True
                self._threads.submit(self._load, handle)
        return handle

    def hold(self, handle: TaskHandle, count: int = 1) -> None:
        """Add `count` references to a handle that has one."""
        with self._changed:
            handle.references += count

    def release(self, handle: TaskHandle) -> None:
        """Give one reference back; a task that is no longer served is dropped with the last one."""
        with self._changed:
            handle.references -= 1
            assert handle.references >= 0
            if handle.unwanted and not handle.references and not handle.loading:
                self._drop(handle)
            if handle.task.composed:
                self._drop_composed()
            self._changed.notify_all()

    def pin(self, task: Task) -> TaskHandle:
        """Load a task where it is not on the device, and never evict it."""
        handle = self.acquire(task)
        handle.pinned = True
        self.release(handle)
        return handle

    def load(self, task: Task, *, pin: bool, timeout: float) -> TaskInfo:
        """Wait until a task is on the device; raises what its load raises, or `CancelledError` after `timeout` s."""
        handle = self.pin(task) if pin else self.acquire(task)
        try:
            return handle.wait(timeout).info
        finally:
            if not pin:
                self.release(handle)

    def unpin(self, digest: str) -> None:
        """Allow the eviction of a task that was pinned."""
        with self._changed:
            handle = self._handles.get(digest)
            if handle is not None:
                handle.pinned = False
                self._changed.notify_all()

    def admit(self, task: Task, host: HostTask) -> Resident:
        """Put a task that the caller has read on the device now, pinned: there is nowhere to read it from again."""
        with self._changed:
            handle = self._handles.setdefault(task.digest, TaskHandle(task, self))
            handle.references += 1
        try:
            self._place(host, handle)
        finally:
            self.release(handle)
        handle.pinned = True
        return handle.wait()

    def forget(self, digest: str) -> None:
        """Drop a task that is no longer served, now or with its last reference."""
        with self._changed:
            handle = self._handles.get(digest)
            if handle is not None:
                handle.pinned, handle.unwanted = False, True
                if not handle.references and not handle.loading:
                    self._drop(handle)
            self._hosts.forget(digest)
            self._infos.pop(digest, None)

    def on_device(self) -> list[TaskHandle]:
        """The handles of the tasks that are ready, without references; `ArenaManager` looks at their weights."""
        with self._changed:
            return [handle for handle in self._handles.values() if handle.resident is not None]

    def reload(self, handle: TaskHandle) -> None:
        """Read a task again whose weights in memory are damaged, from its package; its rows wait for that. One that
        nobody needs now is dropped. The arena's lock is held: no batch runs, and its patch is not applied."""
        with self._changed:
            if handle.resident is None or self._handles.get(handle.task.digest) is not handle:
                return
            self._hosts.forget(handle.task.digest)  # on a CPU it is the same memory
            if self._closed or not (handle.references or handle.pinned):
                self._drop(handle)
                return
            self._device_bytes -= handle.resident.nbytes
            handle.loading = True
            handle.ready.clear()
            handle.resident = None
            self._threads.submit(self._load, handle)

    def status(self, task: Task) -> TaskStatus:
        """Where a task is, and what it takes."""
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
                *((resident.why_swap, resident.why_unshared) if resident is not None else (None, None)),
            )

    def handle(self, digest: str) -> TaskHandle | None:
        """The handle of a task that is in memory or on its way there, without a reference; None of others."""
        return self._handles.get(digest)

    def usage(self) -> Usage:
        """Bytes and counts, as they are now."""
        with self._changed:
            on_device = sum(handle.resident is not None for handle in self._handles.values())
            return Usage(
                self._device_bytes,
                self._hosts.nbytes,
                on_device,
                len(self._hosts),
                self._hits,
                self._misses,
                self._loads,
                self._evictions,
            )

    def close(self) -> None:
        """Load nothing more; waits for the loads that run."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _load(self, handle: TaskHandle) -> None:
        try:
            host = self._hosts.sound(handle.task.digest) or self._loader.read(handle.task)
            self._place(host, handle, keep=not handle.task.composed)
        except Exception as error:  # a disk, a hub, a device: the task's rows fail, the engine goes on
            self._fail(handle, load_error(handle.task, error))
        self.announce(handle)

    def _place(self, host: HostTask, handle: TaskHandle, *, keep: bool = False) -> None:
        """Have a task on the device; made again where weights were found damaged meanwhile, as it may be made of them.
        keep: in the host tier too."""
        while True:
            failures = self._arena.failures
            resident = self._loader.place(host)
            with self._changed:
                if handle.resident is None:
                    self._make_room(resident.nbytes, handle)
                if self._arena.failures == failures:
                    if handle.resident is None:
                        self._settle(handle, resident)
                    if keep:
                        self._hosts.keep(host)
                    return

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
        """Evict tasks until `nbytes` fit; waits while every one is referenced. The lock is held."""
        if nbytes > self._budgets.device_bytes:
            raise EngineError(
                f"{wanted.task.reference} is larger than the whole budget for tasks",
                found=f"{nbytes} bytes",
                expected=f"at most {self._budgets.device_bytes}",
                fix="raise the budget, or prune the delta",
            )
        asked = False
        while self._device_bytes + nbytes > self._budgets.device_bytes:
            victim = next((h for h in self._handles.values() if self._is_evictable(h, wanted)), None)
            if victim is not None:
                self._drop(victim)
                self._evictions += 1
            elif not asked:
                asked = True
                self._release_idle()
            else:
                self._refuse_if_pinned(nbytes, wanted)
                if self._closed:
                    raise StoppingError
                self._changed.wait(WAIT_SECONDS)
                asked = False  # a batch that ended meanwhile may have left its task in the arena

    def _is_evictable(self, handle: TaskHandle, wanted: TaskHandle) -> bool:
        return handle.resident is not None and not handle.references and not handle.pinned and handle is not wanted

    def _refuse_if_pinned(self, nbytes: int, wanted: TaskHandle) -> None:
        """Raise where no wait can help: rows are answered in the end, pinned tasks stay."""
        pinned = sum(h.resident.nbytes for h in self._handles.values() if h.pinned and h.resident is not None)
        if pinned + nbytes > self._budgets.device_bytes:
            raise EngineError(
                f"{wanted.task.reference} does not fit beside the pinned tasks",
                found=f"{nbytes} bytes beside {pinned} pinned",
                expected=f"at most {self._budgets.device_bytes} in all",
                fix="raise the budget, or unpin a task",
            )

    def _drop_composed(self) -> None:
        """Drop the least recently used compositions beyond their budget, and what is known of them: there is no end
        of the compositions that requests can make."""
        idle = [h for h in self._handles.values() if h.task.composed and h.resident is not None and not h.references]
        for handle in idle[: max(0, len(idle) - self._budgets.composed)]:
            self._drop(handle)
            self._infos.pop(handle.task.digest, None)

    def _release_idle(self) -> None:
        """Give up the arena's reference to a task that no row needs. The arena's lock is taken before this one."""
        self._changed.release()
        try:
            self._arena.release_idle()
        finally:
            self._changed.acquire()

    def _drop(self, handle: TaskHandle) -> None:
        self._device_bytes -= handle.resident.nbytes if handle.resident is not None else 0
        handle.resident = None
        self._handles.pop(handle.task.digest, None)
        self._changed.notify_all()
