"""Requests for many tasks hold none of them while one has to be read: two that hold and wait would wait for ever."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from sparsehub.backbone import load_backbone
from sparsehub.engine import Budgets, Engine, PendingRequest, Task
from sparsehub.errors import CancelledError, HubError, UnknownTaskError
from tests.support.tiny_tasks import flat

TEXTS = ["the quick fox", "who wrote the book"]


@pytest.fixture(scope="module")
def nbytes(tiny_tasks: Any) -> int:
    """Bytes of a task of these."""
    engine = Engine(load_backbone(str(tiny_tasks.folder)))
    engine.add(tiny_tasks.read("held", seed=80))
    return engine.usage.device_bytes


@pytest.fixture
def engine(tiny_tasks: Any, nbytes: int) -> Engine:
    """With room for one task, or one composition, that nobody keeps."""
    return Engine(load_backbone(str(tiny_tasks.folder)), budgets=Budgets(device_bytes=nbytes * 19 // 10, composed=0))


def task(package: Any, load: Callable[[], Any] | None = None) -> Task:
    return Task(package.manifest.name, package.manifest.version, package.digest, load or (lambda: package))


def after_reading(engine: Engine, name: str, then: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Call `then` once, after the package of this task was read and before the task is held."""
    sound, left = engine.info, [then]

    def info(reference: Any, timeout: float | None = None) -> Any:
        found = sound(reference, timeout)
        if str(reference) == name and left:
            left.pop()()
        return found

    monkeypatch.setattr(engine, "info", info)


def scores(pending: Any) -> list[list[float]]:
    assert isinstance(pending, PendingRequest), pending
    return [flat(answer) for answer in pending.results(60)]


def test_a_task_that_is_reloaded_between_reading_and_holding(
    engine: Engine, tiny_tasks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its new package has no room beside the task that the request would hold."""
    first, old, new = (tiny_tasks.read("held", seed=80), *(tiny_tasks.read("anew", seed=seed) for seed in (81, 82)))
    engine.register(task(first))
    engine.register(task(old))
    after_reading(engine, "anew", lambda: engine.register(task(new), replace=True), monkeypatch)
    with engine:
        held, anew = engine.classify_many(["held", "anew"], TEXTS, timeout=60)
        expected = tiny_tasks.reference(tiny_tasks.write("held", seed=80))
        assert scores(held) == [pytest.approx(expected(text), abs=1e-4) for text in TEXTS]
        expected = tiny_tasks.reference(tiny_tasks.write("anew", seed=82))
        assert scores(anew) == [pytest.approx(expected(text), abs=1e-4) for text in TEXTS]
        assert isinstance(anew, PendingRequest) and anew.task is not None and anew.task.digest == new.digest


def test_a_task_that_is_gone_or_cannot_be_read_by_then_fails_alone(
    engine: Engine, tiny_tasks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, old, new = (tiny_tasks.read("held", seed=80), *(tiny_tasks.read("anew", seed=seed) for seed in (81, 82)))

    def away() -> Any:
        raise HubError("the hub is away")

    engine.register(task(first))
    with engine:
        for then, error in (
            (lambda: engine.register(task(new, away), replace=True), HubError),
            (lambda: engine.remove("anew"), UnknownTaskError),
        ):
            engine.register(task(old), replace=True)
            with monkeypatch.context() as patch:
                after_reading(engine, "anew", then, patch)
                held, anew = engine.classify_many(["held", "anew"], TEXTS, timeout=60)
            assert len(scores(held)) == 2 and isinstance(anew, error)


def test_compositions_that_nobody_keeps(engine: Engine, tiny_tasks: Any) -> None:
    """What is known of them is forgotten with their last reference, so each is read again and again."""
    for seed, name in enumerate(("one", "two"), start=83):
        engine.register(task(tiny_tasks.read(name, seed=seed)))
    with engine:
        found = engine.classify_many(["one+two*0.5", "two+one", "one"], TEXTS, timeout=60)
        assert [len(scores(its)) for its in found] == [2, 2, 2]


def test_what_is_not_read_in_time_fails_alone(engine: Engine, tiny_tasks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first, old, new = (tiny_tasks.read("held", seed=80), *(tiny_tasks.read("anew", seed=seed) for seed in (81, 82)))
    gate = threading.Event()

    def slow() -> Any:
        gate.wait(60)
        return new

    engine.register(task(first))
    engine.register(task(old))
    after_reading(engine, "anew", lambda: engine.register(task(new, slow), replace=True), monkeypatch)
    with engine:
        held, anew = engine.classify_many(["held", "anew"], TEXTS, timeout=0.3)
        gate.set()
        assert isinstance(anew, CancelledError) and "was not loaded in time" in str(anew)
        assert isinstance(held, PendingRequest)  # its rows may wait no longer than that, so they are not looked at
