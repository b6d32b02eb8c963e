"""Budgets, references and loading, with tasks that are only numbers."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest

from sparsehub.engine.integrity import TensorDigests
from sparsehub.engine.residency import Residency
from sparsehub.engine.resident import HostTask, Resident
from sparsehub.engine.stats import TaskStatus
from sparsehub.engine.task_handle import Budgets, TaskHandle
from sparsehub.engine.task_registry import Task, TaskInfo
from sparsehub.errors import CancelledError, EngineError, FormatError, HubError, StoppingError, UsageError


class Sized:
    """Stands for a host task or a resident of so many bytes."""

    why_swap = why_unshared = None
    digests = TensorDigests(())  # nothing in it can be damaged

    def __init__(self, task: Task, nbytes: int):
        self.info = TaskInfo(task.name, task.version, task.digest, cast(Any, None), nbytes)
        self.nbytes = nbytes


def task_of(number: int, load: Callable[[], Any] = lambda: None) -> Task:
    return Task(f"task{number}", "1.0.0", f"sha256:{number:064x}", load)


class World:
    """A residency over tasks of 10 bytes each, its loader, arena and listener in one, and what it did.

    gate: loads wait for it; active: the task in the arena; failures: of its checks.
    """

    failures = 0

    def __init__(self, **budgets: Any):
        self.reads: list[str] = []
        self.loaded: list[TaskHandle] = []
        self.gate = threading.Event()
        self.gate.set()
        self.active: TaskHandle | None = None
        self.residency = Residency(Budgets(**budgets), cast(Any, self), cast(Any, self))
        self.residency.add_listener(self)

    def task_loaded(self, handle: TaskHandle) -> None:
        self.loaded.append(handle)

    def release_idle(self) -> None:
        if self.active is not None and self.active.references == 1:
            active, self.active = self.active, None
            active.release()

    def read(self, task: Task) -> HostTask:
        self.gate.wait(10)
        self.reads.append(task.name)
        task.load()
        return cast(HostTask, Sized(task, 10))

    def place(self, host: HostTask) -> Resident:
        sized = cast(Any, host)
        return cast(Resident, Sized(Task(sized.info.name, "1.0.0", sized.info.digest, lambda: cast(Any, None)), 10))

    def use(self, number: int) -> None:
        """Have a task ready once, and let it go."""
        handle = self.residency.acquire(task_of(number))
        handle.wait(10)
        self.residency.release(handle)

    def where(self, number: int) -> str:
        status: TaskStatus = self.residency.status(task_of(number))
        return status.where


@pytest.fixture
def world() -> Iterator[Callable[..., World]]:
    made: list[World] = []

    def make(**budgets: Any) -> World:
        made.append(World(**budgets))
        return made[-1]

    yield make
    for one in made:
        one.gate.set()
        one.residency.close()


def test_a_task_is_read_when_it_is_first_wanted_and_then_stays(world: Callable[..., World]) -> None:
    it = world()
    assert it.where(1) == "disk" and it.residency.info(task_of(1).digest) is None
    it.use(1)
    it.use(1)
    assert it.reads == ["task1"] and it.where(1) == "device"
    usage = it.residency.usage()
    assert (usage.hits, usage.misses, usage.loads, usage.device_bytes, usage.device_tasks) == (1, 1, 1, 10, 1)
    assert it.residency.info(task_of(1).digest) is not None


def test_the_least_recently_used_goes_and_what_is_known_of_it_stays(world: Callable[..., World]) -> None:
    it = world(device_bytes=30)
    for number in (1, 2, 3, 1, 4):
        it.use(number)
    assert [it.where(number) for number in (1, 2, 3, 4)] == ["device", "disk", "device", "device"]
    assert it.residency.usage().device_bytes == 30 and it.residency.usage().evictions == 1
    assert it.residency.info(task_of(2).digest) is not None
    it.use(2)
    assert it.reads.count("task2") == 2 and it.where(3) == "disk"


def test_what_is_held_never_goes_and_a_load_waits_for_it(world: Callable[..., World]) -> None:
    it = world(device_bytes=20)
    held = [it.residency.acquire(task_of(number)) for number in (1, 2)]
    for handle in held:
        handle.wait(10)
    third = it.residency.acquire(task_of(3))
    with pytest.raises(CancelledError, match="not loaded in time"):
        third.wait(0.3)
    it.residency.release(held[0])
    assert third.wait(10).nbytes == 10
    assert [it.where(number) for number in (1, 2, 3)] == ["disk", "device", "device"]


def test_a_pinned_task_never_goes(world: Callable[..., World]) -> None:
    it = world(device_bytes=20)
    it.residency.pin(task_of(1)).wait(10)
    for number in (2, 3, 4):
        it.use(number)
    assert it.where(1) == "device" and it.residency.usage().device_bytes == 20
    it.residency.unpin(task_of(1).digest)
    it.use(5)
    it.use(6)
    assert it.where(1) == "disk"


def test_a_task_that_can_never_fit_is_refused_with_the_reason(world: Callable[..., World]) -> None:
    it = world(device_bytes=9)
    with pytest.raises(EngineError, match="larger than the whole budget"):
        it.residency.acquire(task_of(1)).wait(10)
    beside = world(device_bytes=15)
    beside.residency.pin(task_of(1)).wait(10)
    with pytest.raises(EngineError, match="does not fit beside the pinned tasks"):
        beside.residency.acquire(task_of(2)).wait(10)


@pytest.mark.parametrize(
    "error", [FormatError("damaged"), HubError("no answer"), OSError("disk gone"), UsageError("no room")]
)
def test_a_load_that_fails_is_told_and_tried_again(world: Callable[..., World], error: Exception) -> None:
    it, outcomes = world(), [error, None]

    def load() -> Any:
        outcome = outcomes.pop(0)
        if outcome is not None:
            raise outcome

    task = task_of(1, load)
    with pytest.raises((FormatError, HubError, EngineError), match=str(error)):
        it.residency.acquire(task).wait(10)
    assert it.residency.acquire(task).wait(10).nbytes == 10
    assert [handle.error is None for handle in it.loaded] == [False, True]


def test_many_who_want_one_task_wait_for_one_load(world: Callable[..., World]) -> None:
    it = world()
    it.gate.clear()
    handles = [it.residency.acquire(task_of(1)) for _ in range(20)]
    assert it.where(1) == "loading"
    it.gate.set()
    assert len({id(handle.wait(10)) for handle in handles}) == 1
    assert it.reads == ["task1"] and it.residency.status(task_of(1)).references == 20


def test_a_task_that_is_forgotten_goes_with_its_last_reference(world: Callable[..., World]) -> None:
    it = world()
    handle = it.residency.acquire(task_of(1))
    handle.wait(10)
    it.residency.forget(task_of(1).digest)
    assert it.where(1) == "device" and handle.resident is not None
    it.residency.release(handle)
    assert it.where(1) == "disk" and it.residency.usage().device_bytes == 0


def test_a_task_that_is_forgotten_and_wanted_again_stays(world: Callable[..., World]) -> None:
    it = world()
    handle = it.residency.acquire(task_of(1))
    handle.wait(10)
    it.residency.forget(task_of(1).digest)
    again = it.residency.acquire(task_of(1))
    for one in (handle, again):
        it.residency.release(one)
    assert it.where(1) == "device"


def test_the_host_tier_saves_reading_again(world: Callable[..., World]) -> None:
    it = world(device_bytes=10, host_bytes=20)
    for number in (1, 2, 1, 2):
        it.use(number)
    assert it.reads == ["task1", "task2"]
    assert (it.where(1), it.where(2)) == ("host", "device")
    it.use(3)
    usage = it.residency.usage()
    assert (usage.host_bytes, usage.host_tasks, usage.device_bytes) == (20, 2, 10)
    assert it.where(1) == "disk"


def test_who_holds_something_without_need_is_asked_before_anyone_waits(world: Callable[..., World]) -> None:
    """The patch that was left in the arena is held, though no row needs it."""
    it = world(device_bytes=10)
    inside = it.residency.acquire(task_of(1))
    inside.wait(10)
    it.active = inside
    it.use(2)
    assert (it.where(1), it.where(2)) == ("disk", "device")


def test_what_a_later_batch_leaves_in_the_arena_is_asked_for_too(world: Callable[..., World]) -> None:
    """The load has begun to wait while a row ran; the batch ends, and its task stays in the arena, held."""
    it = world(device_bytes=10)
    ran = it.residency.acquire(task_of(1))
    ran.wait(10)
    waiting = it.residency.acquire(task_of(2))
    time.sleep(0.2)
    ran.hold()
    it.active = ran
    ran.release()
    waiting.wait(10)
    assert (it.where(1), it.where(2)) == ("disk", "device")


def test_closing_ends_a_load_that_waits_for_room(world: Callable[..., World]) -> None:
    it = world(device_bytes=10)
    it.residency.acquire(task_of(1)).wait(10)
    waiting = it.residency.acquire(task_of(2))
    time.sleep(0.2)
    it.residency.close()
    with pytest.raises(StoppingError, match="stopping"):
        waiting.wait(10)


def test_budgets_that_make_no_sense_are_refused() -> None:
    for budgets in ({"device_bytes": 0}, {"host_bytes": -1}, {"loaders": 0}):
        with pytest.raises(UsageError, match="budgets"):
            Budgets(**budgets)


def test_many_threads_leave_the_books_in_order(world: Callable[..., World]) -> None:
    """Bytes are those of what is there, never above the budget, and nothing that is held is missing."""
    it, budget = world(device_bytes=50, host_bytes=30, loaders=2), 50
    wrong: list[str] = []

    def client(seed: int) -> None:
        choices = random.Random(seed)
        for _ in range(60):
            number = choices.randrange(12)
            handle = it.residency.acquire(task_of(number))
            resident = handle.wait(20)
            if choices.random() < 0.1:
                it.residency.forget(task_of(number).digest)
            if handle.resident is not resident:
                wrong.append("a held task was dropped")
            if it.residency.usage().device_bytes > budget:
                wrong.append("over the budget")
            it.residency.release(handle)

    threads = [threading.Thread(target=client, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    usage = it.residency.usage()
    assert not wrong
    assert usage.device_bytes == 10 * usage.device_tasks <= budget
    assert usage.host_bytes == 10 * usage.host_tasks <= 30
    assert all(it.residency.status(task_of(number)).references == 0 for number in range(12))
