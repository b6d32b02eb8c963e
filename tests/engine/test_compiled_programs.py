"""Programs that are really compiled: equal to eager passes whatever is in the arena and whoever shares a batch."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sparsehub import Engine
from sparsehub.backbone import load_backbone
from sparsehub.engine.compiled import program_cache
from sparsehub.engine.compiled.mixed_pass import MixedPass, arguments_of
from sparsehub.engine.compiled.program import Program
from sparsehub.engine.compiled.proof import sample
from sparsehub.engine.mixed_forward import MixedBatch
from sparsehub.errors import EngineError
from sparsehub.package import read_package
from tests.engine.test_compiled_mixed import BATCHES, needs_exports, tasks_on
from tests.engine.test_compiled_passes import PATIENCE, TEXTS, vectors
from tests.engine.test_mixed_forward import run_in_place, run_mixed
from tests.engine.test_swap import random_patch
from tests.support import SOAK
from tests.support.tiny_tasks import TinyTasks

needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None and shutil.which("clang++") is None, reason="compiled passes need g++"
)


@pytest.fixture(scope="module")
def compiled(tiny_checkpoint: Callable[[str], Path]) -> Iterator[Engine]:
    """An engine whose passes are compiled; it has answered while they were not."""
    with Engine(load_backbone(str(tiny_checkpoint("bert"))), mode="swap", compile_mode="on") as engine:
        vectors(engine)
        assert engine.compiler.join(PATIENCE)
        yield engine


@needs_compiler
def test_answers_are_the_eager_ones_and_every_change_of_the_arena_is_seen(compiled: Engine) -> None:
    plain, arena = compiled.compiler.plain, compiled.arena
    in_use = plain.compiled
    assert in_use is not None and compiled.costs.compiled.used(8)
    swap, base = arena.swap, compiled.backbone.arena.digest()
    patches = [random_patch(compiled.backbone, seed) for seed in (1, 2)]
    batches = [sample(compiled.backbone, in_use.program, rows, length) for rows, length in ((1, 3), (4, 9))]
    with arena.lock, torch.inference_mode():
        for patch in [None, *patches * 20, None]:
            swap.to(patch)
            for batch in batches:
                its, eager = plain(batch), compiled.backbone.module(**batch)
                assert type(its) is type(eager) and set(its) == set(eager)
                rows = batch["attention_mask"].bool()
                torch.testing.assert_close(
                    its.last_hidden_state[rows], eager.last_hidden_state[rows], atol=1e-4, rtol=1e-4
                )
    assert compiled.backbone.arena.digest() == base and plain.compiled is in_use
    assert compiled.arena.check_all()


@needs_compiler
def test_the_memory_of_an_answer_is_its_own(compiled: Engine) -> None:
    in_use = compiled.compiler.plain.compiled
    assert in_use is not None
    batch = sample(compiled.backbone, in_use.program, 16, 16)
    kept = in_use.program(batch)["last_hidden_state"]
    values = kept.clone()
    for _ in range(50):
        in_use.program(batch)
    assert torch.equal(kept, values), "memory that a tensor still reads is not given to the next pass"


@needs_compiler
def test_a_second_start_compiles_nothing_and_a_changed_file_is_refused(
    compiled: Engine, tiny_checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setattr(program_cache, "_compile", lambda *_: pytest.fail("it was compiled before"))
    before = vectors(compiled)
    with Engine(load_backbone(str(tiny_checkpoint("bert"))), mode="swap", compile_mode="on") as second:
        assert second.compiler.join(PATIENCE)
        torch.testing.assert_close(vectors(second), before, atol=1e-4, rtol=0)
    in_use = compiled.compiler.plain.compiled
    assert in_use is not None
    library = Path(in_use.program._library._name)
    content = library.read_bytes()
    library.unlink()  # the engine has it open
    library.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    try:
        with caplog.at_level(logging.WARNING, "sparsehub"):
            engine = Engine(load_backbone(str(tiny_checkpoint("bert"))), compile_mode="on")
            with engine:
                assert not engine.compiler.join(PATIENCE)
                assert len(vectors(engine)) == len(TEXTS)
        assert caplog.text.count("passes stay eager") == 1 and "was changed" in caplog.text
    finally:
        library.unlink()
        library.write_bytes(content)


@pytest.fixture(scope="module")
def mixing(tiny_tasks: TinyTasks, suite: Mapping[str, Path]) -> Iterator[Engine]:
    """An engine of three tasks whose batches run mixed, compiled."""
    with Engine(load_backbone(str(tiny_tasks.folder)), mode="mixed", compile_mode="on") as engine:
        for name in ("three", "seven", "rating"):
            engine.add(read_package(suite[name]))
        assert engine.compiler.join(PATIENCE)
        assert engine.compiler.mixed.compiled is not None
        yield engine


@needs_compiler
@needs_exports
def test_any_tasks_in_any_split_give_what_their_weights_give(mixing: Engine) -> None:
    backbone, targets, mixed = mixing.backbone, mixing._targets, mixing.compiler.mixed
    in_use, base = mixed.compiled, backbone.arena.digest()
    with mixing.arena.lock, torch.inference_mode():
        mixing.arena.swap.to(None)
        patches, adapters = tasks_on(backbone, targets)
        for bounds, length in BATCHES:
            batch = sample(backbone, program_of(mixed), bounds[-1][2], length)
            found = mixed(MixedBatch(targets, adapters, bounds), batch).last_hidden_state
            rows = batch["attention_mask"].bool()
            for expected in (
                run_mixed(backbone, targets, adapters, bounds, batch),
                run_in_place(backbone, patches, bounds, batch),
            ):
                torch.testing.assert_close(found[rows], expected[rows], atol=1e-4, rtol=1e-4)
    assert backbone.arena.digest() == base and mixed.compiled is in_use
    assert mixing.arena.check_all()


def program_of(mixed: MixedPass) -> Program:
    assert mixed.compiled is not None
    return mixed.compiled.program


@needs_compiler
@needs_exports
def test_the_answers_of_a_compiled_engine_are_the_eager_ones(mixing: Engine) -> None:
    assert mixing.costs.compiled_mixed.used(64)
    mixed, tasks = mixing.compiler.mixed, ("three", "seven", "rating")
    eager, mixed.compiled = mixed.compiled, None
    expected = [answers(mixing, task) for task in tasks]
    mixed.compiled = eager
    for task, theirs in zip(tasks, expected, strict=True):
        torch.testing.assert_close(answers(mixing, task), theirs, atol=1e-4, rtol=1e-4)
    assert mixed.compiled is eager


def answers(engine: Engine, task: str) -> Tensor:
    return torch.tensor(engine.embed(task, ["one two three", "four five", "two"]).futures[0].result(60))


@needs_compiler
@needs_exports
def test_passes_on_int8_weights_are_compiled_too(tiny_tasks: TinyTasks) -> None:
    """And read those weights where they are: damage, which is mended in place, is seen as by eager passes."""
    backbone = load_backbone(str(tiny_tasks.folder))
    options: dict[str, Any] = {"weights": "int8", "allow_quantised": True, "check_seconds": 0}
    with Engine(backbone, compile_mode="on", **options) as engine:
        assert engine.compiler.join(PATIENCE) and engine.compiler.plain.compiled is None
        targets, mixed, in_use = engine._targets, engine.compiler.mixed, engine.compiler.mixed.compiled
        assert targets.int8 is not None and in_use is not None and engine.costs.compiled_mixed.used(64)
        packed = next(iter(targets.int8.matrices.values()))._weight.packed

        def pair(bounds: Any, length: int) -> tuple[Tensor, Tensor]:
            """What the program gives for a batch, and what the eager pass does, of tokens."""
            batch = sample(backbone, in_use.program, bounds[-1][2], length)
            rows = batch["attention_mask"].bool()
            found = mixed(MixedBatch(targets, adapters, bounds), batch).last_hidden_state
            return found[rows], run_mixed(backbone, targets, adapters, bounds, batch)[rows]

        with engine.arena.lock, torch.inference_mode():
            _, adapters = tasks_on(backbone, targets)
            before = [pair(*batch) for batch in BATCHES]
            for found, expected in before:
                torch.testing.assert_close(found, expected, atol=1e-2, rtol=1e-2)
            packed.random_(-127, 128)
            found, expected = pair(*BATCHES[-1])
            assert not torch.allclose(found, before[-1][0], atol=0.1)
            torch.testing.assert_close(found, expected, atol=1e-2, rtol=1e-2)
        assert engine.arena.check_all() and engine.arena.repairs == 1
        with engine.arena.lock, torch.inference_mode():
            assert torch.equal(pair(*BATCHES[-1])[0], before[-1][0])
        assert mixed.compiled is in_use


@needs_compiler
@needs_exports
def test_tokens_without_a_task_or_ids_without_a_row_are_an_error(mixing: Engine) -> None:
    """A program reads memory by what it is given: it looks first."""
    backbone, program = mixing.backbone, program_of(mixing.compiler.mixed)
    with mixing.arena.lock, torch.inference_mode():
        batch = sample(backbone, program, 2, 5)
        mixed = MixedBatch(mixing._targets, tasks_on(backbone, mixing._targets)[1], [(0, 0, 1), (1, 1, 2)])
        arguments = arguments_of(mixed, 5)
        program({**batch, **arguments})
        with pytest.raises(EngineError, match="a compiled program failed"):
            program({**batch, **arguments, "token_blocks": arguments["token_blocks"][:1]})
        with pytest.raises(EngineError, match="a compiled program failed"):
            program({**batch, **arguments, "input_ids": batch["input_ids"] + backbone.config.vocab_size})


@needs_compiler
@needs_exports
@pytest.mark.soak
def test_thousands_of_switches_under_compiled_passes(mixing: Engine) -> None:
    """10,000 in `make soak`: each is seen at once, and the mixed passes between them see none of it."""
    backbone, plain, mixed, swap = (
        mixing.backbone,
        mixing.compiler.plain,
        mixing.compiler.mixed,
        mixing.arena.swap,
    )
    programs, base = (plain.compiled, mixed.compiled), backbone.arena.digest()
    with mixing.arena.lock, torch.inference_mode():
        swap.to(None)
        patches, adapters = tasks_on(backbone, mixing._targets)
        bounds, batch = BATCHES[1][0], sample(backbone, program_of(mixed), 4, 5)
        every = run_mixed(backbone, mixing._targets, adapters, bounds, batch)
        alone = [run_in_place(backbone, [patch], [(0, 0, 4)], batch) for patch in patches]
        for number in range(10_000 if SOAK else 200):
            swap.to(patches[number % len(patches)])
            found, expected = plain(batch).last_hidden_state, alone[number % len(patches)]
            assert near(found, expected, batch), number
            if number % 10 == 0:
                swap.to(None)
                assert near(mixed(MixedBatch(mixing._targets, adapters, bounds), batch).last_hidden_state, every, batch)
        swap.to(None)
    assert backbone.arena.digest() == base and programs == (plain.compiled, mixed.compiled)
    assert mixing.arena.check_all()


def near(found: Tensor, expected: Tensor, batch: Mapping[str, Tensor]) -> bool:
    rows = batch["attention_mask"].bool()
    return bool((found[rows] - expected[rows]).abs().max() <= 1e-4 * max(1.0, float(expected.abs().max())))
