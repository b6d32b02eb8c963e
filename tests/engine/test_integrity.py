"""A weight that changed by itself is found, wherever it is and whatever task is in the arena, and put right."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import sparsehub.engine.arena_manager
from sparsehub.backbone import load_backbone
from sparsehub.engine import Engine
from sparsehub.engine.integrity import IntegrityChecker
from sparsehub.errors import BackboneError, UnhealthyError
from sparsehub.package import read_package


@pytest.fixture
def engine(tiny_tasks: Any, suite: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    monkeypatch.setattr("sparsehub.engine.integrity.BLOCK_BYTES", 4096)  # several blocks in a tiny arena
    engine = Engine(load_backbone(str(tiny_tasks.folder)), mode="swap", check_seconds=0)
    engine.add(read_package(suite["three"]))
    yield engine
    engine.stop()


def flip_a_bit(engine: Engine, place: int) -> None:
    (buffer,) = engine.backbone.arena.buffers.values()
    buffer.view(torch.int32)[place] ^= 1


def test_a_sound_arena_is_sound_with_and_without_a_task_in_it(engine: Engine) -> None:
    assert engine.arena.check_all()
    engine.classify("three", ["the fox"])
    engine.step()
    assert engine.arena.swap.current is not None
    assert engine.arena.check_all() and engine.arena.failures == 0


@pytest.mark.parametrize("inside", [False, True])
def test_any_flipped_bit_is_found_and_the_weights_loaded_again(
    engine: Engine, inside: bool, caplog: pytest.LogCaptureFixture
) -> None:
    original = engine.backbone.arena.digest()
    (buffer,) = engine.backbone.arena.buffers.values()
    free = torch.ones(len(buffer), dtype=torch.bool)
    if inside:
        engine.classify("three", ["the fox"])
        engine.step()
        assert engine.arena.swap.current is not None
        for segment in engine.arena.swap.current.segments:
            free[segment.positions.long()] = False  # what the patch covers is put back anyway
    place = random.Random(1).choice(torch.nonzero(free).flatten().tolist())
    flip_a_bit(engine, place)
    with caplog.at_level(logging.WARNING, "sparsehub"):
        assert engine.arena.check_all()
    assert (engine.arena.failures, engine.arena.repairs) == (1, 1)
    assert "not those of" in caplog.text and "whole again" in caplog.text
    assert engine.arena.swap.current is None and engine.backbone.arena.digest() == original
    ticket = engine.classify("three", ["the fox"])
    engine.step()
    assert ticket.futures[0].result(0).label


def test_every_block_has_its_turn(engine: Engine) -> None:
    guard = IntegrityChecker(engine.backbone.arena)
    assert guard.blocks > 3
    flip_a_bit(engine, 0)
    outcomes = [guard.check_next(None) for _ in range(2 * guard.blocks)]
    assert outcomes.count(False) == 2 and not outcomes[0] and not outcomes[guard.blocks]
    flip_a_bit(engine, 0)


def test_the_model_loop_looks_by_itself(tiny_tasks: Any) -> None:
    engine = Engine(load_backbone(str(tiny_tasks.folder)), check_seconds=1e-9)
    for _ in range(3):
        engine.step()
    assert engine.arena.checks >= 3
    flip_a_bit(engine, 5)
    for _ in range(3):
        engine.step()
    assert engine.arena.repairs == 1 and engine.healthy


def test_weights_that_cannot_be_loaded_again_stop_the_engine(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(_: Any) -> None:
        raise BackboneError("the checkpoint is gone")

    monkeypatch.setattr(sparsehub.engine.arena_manager, "reload", gone)
    flip_a_bit(engine, 7)
    assert not engine.arena.check_all()
    assert not engine.healthy and engine.arena.repairs == 0
    with pytest.raises(UnhealthyError):
        engine.classify("three", ["the fox"])
