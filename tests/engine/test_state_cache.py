"""Kept states of texts: bounded, proved before use, forgotten with the weights that made them, and never wrong."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from benchmarks.engine.bit_flips import flip
from sparsehub.backbone import load_backbone
from sparsehub.delta import Delta
from sparsehub.engine import Budgets, Engine
from sparsehub.engine.state_cache import StateCache, StateKey
from sparsehub.engine.trunk_plan import plan_trunk
from sparsehub.errors import UsageError
from sparsehub.package.task_spec import HeadSpec
from tests.engine.test_trunk import run_all
from tests.support.tiny_tasks import TinyTasks, flat

TEXT, OTHER = "a good film with a great cast", "who wrote the book"
MEAN = HeadSpec("linear", "mean", False, "joint")
BACKBONE = cast(Any, SimpleNamespace(checkpoint=SimpleNamespace(fingerprint="sha256:0")))


def key(text: bytes, layer: int = 1) -> StateKey:
    return StateKey("sha256:0", layer, 0, text)


def test_what_was_used_least_recently_makes_room() -> None:
    states = torch.randn(3, 4)
    budget = 2 * (states.nbytes + key(b"a").nbytes)
    cache = StateCache(BACKBONE, budget, left=False)
    for text in (b"a", b"b"):
        cache.keep(key(text), states.clone())
    assert cache.take(key(b"a")) is not None and cache.usage.nbytes == budget
    cache.keep(key(b"c"), states.clone())
    assert [cache.has(key(text)) for text in (b"a", b"b", b"c")] == [True, False, True]
    cache.keep(key(b"d"), torch.randn(300, 4))  # larger than all of it
    cache.keep(key(b"c"), states + 1)
    kept = cache.take(key(b"c"))
    assert kept is not None and torch.equal(kept, states + 1) and cache.usage.nbytes == budget
    assert cache.take(key(b"b")) is None and cache.take(key(b"a", layer=2)) is None
    usage = cache.usage
    assert (usage.texts, usage.hits, usage.misses, usage.damaged) == (2, 2, 2, 0)
    cache.clear()
    assert cache.usage.nbytes == cache.usage.texts == 0 and cache.take(key(b"a")) is None


def test_states_that_are_not_finite_are_not_kept() -> None:
    cache = StateCache(BACKBONE, 1 << 20, left=False)
    for value in (torch.nan, torch.inf):
        cache.keep(key(b"a"), torch.tensor([[1.0, value]]))
    assert cache.usage.texts == 0
    assert not StateCache(BACKBONE, 0, left=False).on
    with pytest.raises(UsageError, match="budgets"):
        Budgets(state_bytes=-1)


@pytest.mark.parametrize("left", [False, True])
def test_padding_in_front_of_a_text_is_part_of_its_key(left: bool) -> None:
    """It moves the text's positions, which a model may count from the start of the row."""
    cache = StateCache(BACKBONE, 1 << 20, left=left)
    short, long = {"input_ids": [5, 6]}, {"input_ids": [5, 6, 7]}
    both = plan_trunk([(b"s", short, "task", 1), (b"l", long, "task", 1)], 2)
    alone = plan_trunk([(b"s", short, "task", 1)], 2)
    assert (cache.key(both, 0, 1) == cache.key(alone, 0, 1)) == (not left)
    assert cache.span(both, 0, 3) == (slice(1, 3) if left else slice(0, 2))


@pytest.fixture
def make(tiny_tasks: TinyTasks) -> Iterator[Callable[..., Engine]]:
    """Engines with three tasks that change the upper of two layers, and one that changes both."""
    engines: list[Engine] = []

    def engine(state_bytes: int = 1 << 20, **options: Any) -> Engine:
        budgets = Budgets(state_bytes=state_bytes)
        made = Engine(load_backbone(str(tiny_tasks.folder)), budgets=budgets, **options)
        engines.append(made)
        for seed in range(3):
            made.add(upper(tiny_tasks.read(f"upper{seed}", seed=60 + seed, head=MEAN)))
        made.add(tiny_tasks.read("whole", seed=63, head=MEAN))
        return made

    yield engine
    for made in engines:
        made.stop()


def upper(package: Any) -> Any:
    parts = {name: part for name, part in package.delta.parameters.items() if ".layer.1." in name}
    return dataclasses.replace(package, delta=Delta(parts, "add", "float32"))


def ask(engine: Engine, name: str, *texts: str) -> list[list[float]]:
    pending = engine.classify(name, list(texts))
    run_all(engine)
    return [flat(answer) for answer in pending.results(0)]


def tokens_of_first_layer(engine: Engine) -> list[int]:
    """Filled with the rows of every pass through the first layer."""
    rows: list[int] = []
    layer = engine.backbone.module.encoder.layer[0]
    layer.intermediate.register_forward_hook(lambda _, given, __: rows.append(len(given[0])))
    return rows


def test_a_text_that_comes_again_for_another_task_starts_in_the_middle(make: Callable[..., Engine]) -> None:
    engine, right = make(), make(0, mode="swap")
    _ = engine.costs
    rows = tokens_of_first_layer(engine)
    assert ask(engine, "upper0", TEXT) == [pytest.approx(ask(right, "upper0", TEXT)[0], abs=1e-5)]
    assert rows == [1]
    for name in ("upper1", "upper2", "upper0"):
        assert ask(engine, name, TEXT) == [pytest.approx(ask(right, name, TEXT)[0], abs=1e-5)]
    assert rows == [1]
    found = ask(engine, "upper1", OTHER, TEXT)  # one text of a batch is known, the other is not
    assert rows == [1, 1]
    for answer, expected in zip(found, ask(right, "upper1", OTHER, TEXT), strict=True):
        assert answer == pytest.approx(expected, abs=1e-5)
    assert ask(engine, "whole", TEXT) == [pytest.approx(ask(right, "whole", TEXT)[0], abs=1e-5)]
    assert rows == [1, 1, 1]  # which changes the first layer, and shares nothing
    usage = engine.states.usage
    assert (usage.texts, usage.hits, usage.misses) == (2, 4, 2)
    assert right.states.usage.misses == right.states.usage.texts == 0


def test_a_flipped_bit_of_a_kept_state_is_found_before_it_is_used(
    make: Callable[..., Engine], caplog: pytest.LogCaptureFixture
) -> None:
    engine = make()
    before = ask(engine, "upper0", TEXT)[0]
    (kept,) = engine.states._kept.values()
    with torch.inference_mode():
        flip(kept.states, 7, 30)
    with caplog.at_level(logging.ERROR):
        assert ask(engine, "upper0", TEXT)[0] == pytest.approx(before, abs=1e-6)
    assert engine.states.usage.damaged == 1 and "kept states" in caplog.text
    assert ask(engine, "upper1", TEXT) and engine.states.usage.hits == 1  # what was computed again is kept


def test_what_damaged_weights_have_made_is_forgotten(make: Callable[..., Engine]) -> None:
    engine = make()

    def vector() -> list[float]:
        pending = engine.embed("upper0", [TEXT])
        run_all(engine)
        return pending.results(0)[0]

    before = vector()
    engine.states.clear()
    weight = engine.backbone.module.encoder.layer[0].output.dense.weight
    for entry in range(weight.shape[1]):
        flip(weight, entry, 24)  # a bit of the exponent
    assert vector() != pytest.approx(before, abs=1e-3)
    assert engine.states.usage.texts == 1
    assert engine.arena.check_all() and engine.arena.repairs == 1
    assert engine.states.usage.texts == 0
    assert vector() == pytest.approx(before, abs=1e-6)


def test_a_task_in_the_arena_is_taken_out_before_states_are_computed(make: Callable[..., Engine]) -> None:
    engine, right = make(), make(0, mode="swap")
    engine.mode = "swap"
    ask(engine, "whole", TEXT)
    assert engine.arena.swap.current is not None
    engine.mode = "auto"
    for name in ("upper0", "upper1"):
        assert ask(engine, name, TEXT) == [pytest.approx(ask(right, name, TEXT)[0], abs=1e-5)]
    assert engine.arena.swap.current is None and engine.states.usage.hits == 1


def test_where_layers_cannot_be_left_out_nothing_is_kept_and_the_log_says_so(
    make: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def wrong(self: Any, hidden: torch.Tensor) -> torch.Tensor:
        return hidden + 1

    monkeypatch.setattr("sparsehub.engine.state_cache.TextStates.completed", wrong)
    engine = make()
    assert "no states of texts are kept" in caplog.text and "is off by" in caplog.text
    monkeypatch.undo()
    ask(engine, "upper0", TEXT)
    assert engine.states.usage.texts == engine.states.usage.misses == 0
