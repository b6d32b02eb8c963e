"""Requests between `prepare` and `submit`: what they know, what they hold, and that all of it is given back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from sparsehub.backbone import load_backbone
from sparsehub.engine import Engine, Limits, Sampling, TextDelta
from sparsehub.errors import QueueFullError, RequestError, UnhealthyError, UnknownTaskError, UsageError
from sparsehub.package import read_package


@pytest.fixture
def engine(tiny_tasks: Any, suite: Mapping[str, Path]) -> Engine:
    engine = Engine(load_backbone(str(tiny_tasks.folder)), Limits(queue_rows=3))
    engine.add(read_package(suite["three"]))
    return engine


@pytest.fixture(scope="module")
def talker(speakers: Any) -> Engine:
    engine = Engine(load_backbone(str(speakers.folder)), check_seconds=0)
    engine.add(read_package(speakers.write("gruff", "text-generation", seed=0, scale=0.3)))
    return engine


def holds(engine: Engine) -> int:
    (status,) = engine.status()
    return status.references


def test_a_prepared_request_knows_its_task_its_items_and_its_tokens(engine: Engine) -> None:
    with engine.prepare("three", ["the fox", "a dog"]) as prepared:
        assert prepared.task == engine.info("three")
        assert prepared.items == 2
        assert prepared.tokens == engine.classify("three", ["the fox", "a dog"]).tokens > 0
        assert engine.waiting == 2, "only what was classified waits"
    with engine.prepare(None, ["the fox"], embed=True) as prepared:
        assert (prepared.task, prepared.items) == (None, 1)


def test_what_was_not_submitted_is_given_back(engine: Engine) -> None:
    prepared = engine.prepare("three", ["the fox"])
    assert holds(engine) == 1
    prepared.release()
    prepared.release()
    assert holds(engine) == 0
    with pytest.raises(ZeroDivisionError), engine.prepare("three", ["the fox"]):
        raise ZeroDivisionError
    assert holds(engine) == 0 and engine.waiting == 0


def test_what_was_submitted_holds_its_task_until_it_is_answered(engine: Engine) -> None:
    with engine.prepare("three", ["the fox", "a dog"]) as prepared:
        pending = engine.submit(prepared)
    assert holds(engine) == 2 and pending.task == engine.info("three")
    engine.step()
    assert [future.result(0).label for future in pending.futures]
    engine.arena.release_active()
    assert holds(engine) == 0


@pytest.mark.parametrize(
    ("reference", "inputs", "error"),
    [
        ("three", [""], RequestError),
        ("three", ["word " * 600], RequestError),
        ("other", ["the fox"], UnknownTaskError),
        (None, ["the fox"], RequestError),
    ],
)
def test_what_cannot_be_prepared_holds_nothing(
    engine: Engine, reference: str | None, inputs: list[str], error: type[Exception]
) -> None:
    with pytest.raises(error):
        engine.prepare(reference, inputs)
    assert holds(engine) == 0


def test_what_finds_no_room_in_the_queue_holds_nothing(engine: Engine) -> None:
    waiting = engine.classify("three", ["the fox", "a dog"])
    with pytest.raises(QueueFullError), engine.prepare("three", ["one", "two"]) as prepared:
        engine.submit(prepared)
    assert holds(engine) == len(waiting.futures)


def test_nothing_is_prepared_once_the_engine_stopped(engine: Engine) -> None:
    engine.stop()
    with pytest.raises(UnhealthyError):
        engine.prepare("three", ["the fox"])
    assert holds(engine) == 0


def test_what_was_released_cannot_be_submitted(engine: Engine) -> None:
    with engine.prepare("three", ["the fox"]) as prepared:
        pass
    with pytest.raises(UsageError, match="released"):
        engine.submit(prepared)
    assert engine.waiting == 0


def test_an_acquired_task_stays_the_callers(engine: Engine) -> None:
    with engine.acquire("three") as acquired:
        assert acquired.info == engine.info("three")
        engine.prepare(acquired, ["the fox"]).release()
        assert holds(engine) == 1
    assert holds(engine) == 0


def test_prepared_prompts_know_their_tokens_and_are_given_back(talker: Engine) -> None:
    samplings = [Sampling(max_tokens=3), Sampling(max_tokens=4)]
    with talker.prepare_generation("gruff", [[5, 6], [7]], samplings) as prepared:
        assert (prepared.items, prepared.tokens) == (2, 2 + 1 + 3 + 4)
        assert prepared.task == talker.info("gruff") and holds(talker) == 1
    assert holds(talker) == 0
    with pytest.raises(RequestError):
        talker.prepare_generation("gruff", [[5]], [Sampling(max_tokens=100_000)])
    with pytest.raises(UsageError, match="released"):
        talker.submit_generation(prepared)
    assert holds(talker) == 0


class Listener:
    def __init__(self) -> None:
        self.heard: list[tuple[int, TextDelta | None]] = []

    def hear(self, number: int, piece: TextDelta | None) -> None:
        self.heard.append((number, piece))


def test_a_listener_hears_every_text_by_its_number(talker: Engine) -> None:
    listener, samplings = Listener(), [Sampling(max_tokens=3), Sampling(max_tokens=4)]
    with talker.prepare_generation("gruff", ["one", "two"], samplings) as prepared:
        texts = talker.submit_generation(prepared, listener)
    assert talker.generator is not None
    while not all(text.future.done() for text in texts):
        talker.generator.step()
    for number, text in enumerate(texts):
        pieces = [piece for heard, piece in listener.heard if heard == number]
        assert pieces.pop() is None
        assert "".join(piece.text for piece in pieces if piece is not None) == text.result(0).text
