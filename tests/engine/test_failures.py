"""What fails, fails alone; what cannot be mended is said; nothing waits for ever."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import sparsehub.patch
from sparsehub.backbone import load_backbone
from sparsehub.engine import BatchReport, Engine, Limits
from sparsehub.engine.pending_request import PendingRequest
from sparsehub.engine.stats import BatchShare
from sparsehub.errors import CancelledError, QueueFullError, RequestError, StoppingError, UnhealthyError
from sparsehub.package import read_package

Close = Callable[..., bool]
POISON = "river"


@pytest.fixture
def reports() -> list[BatchReport]:
    return []


@pytest.fixture
def engine(tiny_tasks: Any, suite: Mapping[str, Path], reports: list[BatchReport]) -> Iterator[Engine]:
    """Serves `three` and `seven`, one task a batch; not started, so that a test decides when a batch runs."""
    observer = SimpleNamespace(observe=reports.append)
    engine = Engine(load_backbone(str(tiny_tasks.folder)), observer=observer, mode="swap")
    for name in ("three", "seven"):
        engine.add(read_package(suite[name]))
    assert engine.costs, "measured before a test breaks anything"
    yield engine
    engine.stop(drain=5)


def poison(engine: Engine, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The task's head raises for every batch with the poisoned word in it."""
    handle = engine._residency.handle(engine.tasks.find(name).digest)
    assert handle is not None and handle.resident is not None
    head, token = handle.resident.head, engine.tokenizer.convert_tokens_to_ids(POISON)
    assert token != engine.tokenizer.unk_token_id
    sound = head._model.forward

    def forward(**inputs: torch.Tensor) -> Any:
        if bool((inputs["input_ids"] == token).any()):
            raise RuntimeError("a poisoned row")
        return sound(**inputs)

    monkeypatch.setattr(head._model, "forward", forward)


def check_answers(ticket: PendingRequest, texts: list[str], reference: Any, close: Close, *, poisoned: bool) -> None:
    """All texts are answered, but where the task is poisoned those with the word in them, which are told why."""
    for text, future in zip(texts, ticket.futures, strict=True):
        if poisoned and POISON in text:
            with pytest.raises(
                RequestError, match="the model failed on this input; found: RuntimeError: a poisoned row"
            ):
                future.result(0)
        else:
            assert close(future.result(0), reference(text))


def run_all(engine: Engine) -> None:
    while engine.step():
        pass


def broken(*_: Any) -> None:
    raise RuntimeError("the device fell asleep")


def test_a_poisoned_row_fails_alone(
    engine: Engine,
    reports: list[BatchReport],
    tiny_tasks: Any,
    suite: Mapping[str, Path],
    close: Close,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    poison(engine, "three", monkeypatch)
    texts = ["the fox", f"a {POISON}", "a good film", "who wrote the book"]
    ticket, other = engine.classify("three", texts), engine.classify("seven", texts)
    run_all(engine)
    for name, its in (("three", ticket), ("seven", other)):
        check_answers(its, texts, tiny_tasks.reference(suite[name]), close, poisoned=name == "three")
    assert [(report.rows, report.failed) for report in reports] == [(4, 1), (4, 0)]
    assert engine.healthy


def test_a_poisoned_row_fails_alone_among_tasks_whose_heads_run_as_one(
    engine: Engine,
    reports: list[BatchReport],
    tiny_tasks: Any,
    suite: Mapping[str, Path],
    close: Close,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folders = {"three": suite["three"], "twin": tiny_tasks.write("twin", labels=3, seed=9)}
    engine.add(read_package(folders["twin"]))
    engine.mode = "mixed"
    poison(engine, "three", monkeypatch)
    for poisoned in (False, True):
        texts = ["the fox", f"a {POISON}" if poisoned else "a good film"]
        tickets = {name: engine.classify(name, texts) for name in folders}
        run_all(engine)
        for name, ticket in tickets.items():
            check_answers(ticket, texts, tiny_tasks.reference(folders[name]), close, poisoned=name == "three")
    assert [(report.mode, report.rows, report.failed) for report in reports] == [("mixed", 4, 0), ("mixed", 4, 1)]
    assert engine.healthy


def test_a_switch_that_fails_half_way_is_put_right_before_the_next_row(
    engine: Engine, tiny_tasks: Any, suite: Mapping[str, Path], close: Close, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, sound = engine.backbone.arena.digest(), sparsehub.patch.scatter_add_

    def once(arena: torch.Tensor, positions: torch.Tensor, values: torch.Tensor) -> None:
        monkeypatch.setattr(sparsehub.patch, "scatter_add_", sound)
        sound(arena, positions[:7], values[:7])
        raise RuntimeError("the device fell asleep")

    monkeypatch.setattr(sparsehub.patch, "scatter_add_", once)
    ticket = engine.classify("three", ["the fox", "a dog"])
    run_all(engine)
    assert engine.healthy
    for text, future in zip(("the fox", "a dog"), ticket.futures, strict=True):
        assert close(future.result(0), tiny_tasks.reference(suite["three"])(text))
    engine.stop()
    assert engine.backbone.arena.digest() == base


def test_a_switch_that_never_works_fails_its_rows_and_leaves_the_others(
    engine: Engine, tiny_tasks: Any, suite: Mapping[str, Path], close: Close, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = engine.backbone.arena.digest()
    with monkeypatch.context() as patched:
        patched.setattr(sparsehub.patch, "scatter_add_", broken)
        ticket = engine.classify("three", ["the fox", "a dog"])
        run_all(engine)
    for future in ticket.futures:
        with pytest.raises(RequestError, match="fell asleep"):
            future.result(0)
    assert engine.healthy and engine.backbone.arena.digest() == base
    ticket = engine.classify("three", ["the fox"])
    run_all(engine)
    assert close(ticket.futures[0].result(0), tiny_tasks.reference(suite["three"])("the fox"))


def test_a_restore_that_fails_makes_the_engine_unhealthy_and_it_takes_no_more_work(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.classify("three", ["the fox"])
    run_all(engine)
    waiting = [engine.classify("seven", ["the fox", "a dog"]), engine.classify("three", ["a dog"])]
    with monkeypatch.context() as patched:
        patched.setattr(sparsehub.patch, "scatter_copy_", broken)
        run_all(engine)
    for ticket in waiting:
        for future in ticket.futures:
            with pytest.raises(UnhealthyError):
                future.result(0)
    assert not engine.healthy
    assert engine.waiting == 0
    with pytest.raises(UnhealthyError, match="takes no more work"):
        engine.classify("three", ["the fox"])
    with pytest.raises(UnhealthyError, match="takes no more work"):
        engine.embed(None, ["the fox"])


def test_an_unhealthy_engine_takes_no_task_and_can_be_stopped(
    engine: Engine, suite: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("three", "seven"):
        engine.classify(name, ["the fox"])
    with monkeypatch.context() as patched:
        patched.setattr(sparsehub.patch, "scatter_copy_", broken)
        run_all(engine)
    assert not engine.healthy
    with pytest.raises(UnhealthyError, match="no task can be made ready"):
        engine.add(read_package(suite["rating"]))
    assert len(engine.tasks) == 2
    engine.stop()


def test_what_waits_is_answered_when_the_model_thread_dies(
    tiny_tasks: Any, suite: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(_: BatchReport) -> None:
        raise RuntimeError("the observer broke")

    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    engine = Engine(load_backbone(str(tiny_tasks.folder)), observer=SimpleNamespace(observe=die), mode="swap")
    for name in ("three", "seven"):
        engine.add(read_package(suite[name]))
    tickets = [engine.classify(name, ["the fox"]) for name in ("three", "seven", "three")]
    engine.start()
    assert tickets[0].futures[0].result(30).label, "it ran before the observer was called"
    with pytest.raises(UnhealthyError, match="model thread"):
        tickets[1].futures[0].result(30)
    deadline = time.monotonic() + 30
    while engine.healthy and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not engine.healthy
    with pytest.raises(UnhealthyError):
        engine.classify("three", ["the fox"])


def test_a_full_queue_refuses_the_whole_request_and_nothing_else_breaks(
    tiny_tasks: Any, suite: Mapping[str, Path]
) -> None:
    engine = Engine(load_backbone(str(tiny_tasks.folder)), Limits(queue_rows=3))
    engine.add(read_package(suite["three"]))
    ticket = engine.classify("three", ["the fox", "a dog"])
    with pytest.raises(QueueFullError):
        engine.classify("three", ["the fox", "a dog"])
    assert engine.waiting == 2
    run_all(engine)
    assert all(future.result(0).label for future in ticket.futures)
    ticket = engine.classify("three", ["a", "b", "c"])
    run_all(engine)
    assert len(ticket.futures) == 3


def test_a_deadline_that_passes_while_waiting_is_answered(engine: Engine) -> None:
    late = engine.classify("three", ["the fox"], timeout=0)
    fresh = engine.classify("three", ["the fox"], timeout=60)
    run_all(engine)
    with pytest.raises(CancelledError, match="deadline"):
        late.futures[0].result(0)
    assert fresh.futures[0].result(0).label


def test_a_cancelled_row_does_not_run(engine: Engine, reports: list[BatchReport]) -> None:
    ticket = engine.classify("three", ["the fox", "a dog", "a film"])
    assert ticket.futures[1].cancel()
    run_all(engine)
    assert [report.rows for report in reports] == [2]
    assert all(ticket.futures[i].result(0).label for i in (0, 2))


def test_stopping_answers_what_waits_and_refuses_what_comes(engine: Engine) -> None:
    base_before = engine.backbone.arena.digest()
    tickets = [engine.classify(name, ["the fox", "a dog"]) for name in ("three", "seven") * 10]
    engine.start()
    engine.stop()
    assert all(future.result(0).label for ticket in tickets for future in ticket.futures)
    assert engine.backbone.arena.digest() == base_before
    with pytest.raises(UnhealthyError, match="takes no more work"):
        engine.classify("three", ["the fox"])
    assert not engine.healthy


def test_stopping_an_engine_that_never_ran_answers_what_waits(engine: Engine) -> None:
    ticket = engine.classify("three", ["the fox"])
    engine.stop()
    with pytest.raises(StoppingError, match="stopped before this row ran"):
        ticket.futures[0].result(0)


def test_a_report_says_what_a_batch_was(engine: Engine, reports: list[BatchReport]) -> None:
    tickets = [engine.classify("three", ["the fox", "a good film"]), engine.embed(None, ["the fox"])]
    run_all(engine)
    digest = engine.tasks.find("three").digest
    assert [(report.mode, report.shares, report.switches) for report in reports] == [
        ("swap", (BatchShare("three", digest, 2, 0),), 1),
        ("swap", (BatchShare("", "", 1, 0),), 1),
    ]
    assert [(report.rows, report.failed) for report in reports] == [(2, 0), (1, 0)]
    assert all(report.predictions["swap"] > 0 and report.measured > 0 for report in reports)
    longest = max(len(engine.tokenizer(text)["input_ids"]) for text in ("the fox", "a good film"))
    assert reports[0].tokens == 2 * longest
    assert tickets[0].tokens == sum(len(engine.tokenizer(text)["input_ids"]) for text in ("the fox", "a good film"))
    assert all(seconds >= 0 for r in reports for seconds in (r.queued, r.switch, r.forward, r.head))


def test_answered_rows_leave_nothing_behind(engine: Engine) -> None:
    ticket = engine.classify("three", ["the fox"])
    run_all(engine)
    future = weakref.ref(ticket.futures[0])
    del ticket
    gc.collect()
    assert future() is None
