"""Trunks and branches whose layers are really compiled: equal to eager ones whatever branches where, whatever was in
the arena, and whatever became of the memory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.engine.bit_flips import flip
from sparsehub import Engine
from sparsehub.backbone import load_backbone
from sparsehub.engine import BatchReport, Budgets
from sparsehub.engine.compiled import program_cache
from sparsehub.engine.compiled.layer_call import watch_layer
from sparsehub.engine.compiled.layer_programs import CompiledLayers
from sparsehub.engine.mixed_forward import MixedBatch
from sparsehub.engine.one_token import OneToken
from sparsehub.engine.state_cache import TextStates
from sparsehub.engine.target_modules import sample_batch
from sparsehub.engine.trunk_forward import TrunkPass
from sparsehub.engine.trunk_plan import plan_trunk
from sparsehub.errors import EngineError
from sparsehub.patch import Patch
from tests.engine.test_compiled_layers import PLANS
from tests.engine.test_compiled_mixed import needs_exports
from tests.engine.test_compiled_passes import PATIENCE
from tests.engine.test_compiled_programs import needs_compiler
from tests.engine.test_mixed_forward import side_of
from tests.engine.test_trunk import TEXTS, alone, numbers, tasks_for_trunks, upper
from tests.support.tiny_tasks import TinyTasks

pytestmark = [needs_compiler, needs_exports]
Served = tuple[Engine, list[BatchReport]]


@pytest.fixture(scope="module")
def served(tiny_tasks: TinyTasks) -> Iterator[Served]:
    """An engine of many tasks, which runs trunks and branches wherever it can, by compiled layers; and its reports."""
    reports: list[BatchReport] = []
    observer: Any = SimpleNamespace(observe=reports.append)
    options: dict[str, Any] = {"mode": "trunk", "compile_mode": "on", "budgets": Budgets(state_bytes=1 << 20)}
    with Engine(load_backbone(str(tiny_tasks.folder)), observer=observer, check_seconds=0, **options) as engine:
        for package in tasks_for_trunks(tiny_tasks).values():
            engine.add(package)
        assert engine.compiler.join(PATIENCE)
        yield engine, reports


def layers_of(engine: Engine) -> CompiledLayers:
    compiled = engine.compiler.layers.compiled
    assert compiled is not None
    return compiled


def test_every_layer_is_compiled_by_one_program(served: Served) -> None:
    compiled = layers_of(served[0])
    assert sorted(compiled.programs) == [0, 1] and compiled.trunk.used(8) and compiled.branches.used(8)
    assert len({own.program._library._name for own in compiled.programs.values()}) == 1
    assert served[0].costs.compiled_trunk is compiled.trunk and served[0].costs.compiled_branches is compiled.branches


def branched(
    engine: Engine, patches: Sequence[Patch], wanted: Sequence[tuple[int, int]], token: int | None, together: int
) -> tuple[Tensor, list[int]]:
    """The states of texts for tasks (from 1 on; 0 is the plain backbone), and the row of each."""
    backbone, targets = engine.backbone, engine._targets
    assert targets.layers is not None
    layers, adapters = len(targets.layers.modules), [side_of(targets, backbone, patch) for patch in patches]
    plan = plan_trunk([(t, t, k, adapters[k - 1].first if k else layers) for t, k in wanted], layers)
    index = torch.tensor([plan.texts[text] for text in plan.stages[0].texts])
    rows = torch.full((len(plan.stages[-1].rows),), token or 0)
    run = TrunkPass(
        targets,
        plan,
        [adapters[int(str(task)) - 1] for task in plan.slots],
        None if token is None else OneToken(targets.layers, rows),
        together=together,
        passes=engine.compiler.layers,
    )
    with run.on_model():
        states: Tensor = backbone.module(**{name: t[index] for name, t in padded(engine).items()}).last_hidden_state
    return states, list(plan.places)


def padded(engine: Engine) -> dict[str, Tensor]:
    batch = sample_batch(engine.backbone, 3, 7)
    batch["attention_mask"][1, 4:] = 0
    return batch


def test_plans_of_every_kind_give_what_the_tasks_weights_give(served: Served) -> None:
    """And swaps between them leave nothing behind: swap, run, swap, run."""
    engine, _ = served
    backbone, swap, base = engine.backbone, engine.arena.swap, engine.backbone.arena.digest()
    with engine.arena.lock, torch.inference_mode():
        swap.to(None)
        patches = [upper(backbone, engine._targets, first, seed) for seed, first in enumerate((1, 0, -1))]
        batch, real = padded(engine), padded(engine)["attention_mask"].bool()
        right = [alone(backbone, patch, batch) for patch in (None, *patches)]
        for token in (None, 2):
            for number, (wanted, together) in enumerate(PLANS):
                swap.to(patches[number % len(patches)])
                found = backbone.module(**batch).last_hidden_state
                torch.testing.assert_close(found, right[1 + number % len(patches)], atol=1e-4, rtol=1e-4)
                swap.to(None)
                found, places = branched(engine, patches, wanted, token, together)
                for place, (text, task) in zip(places, wanted, strict=True):
                    expected = right[task][text][real[text]]
                    expected = expected if token is None else expected[token].expand_as(expected)
                    torch.testing.assert_close(found[place][real[text]], expected, atol=1e-4, rtol=1e-4)
    assert backbone.arena.digest() == base and layers_of(engine) and engine.arena.check_all()


def test_answers_are_those_of_eager_trunks(served: Served, tiny_tasks: TinyTasks) -> None:
    """Compositions, embeddings, heads of every kind; texts whose states are kept, and those that are seen first."""
    engine, reports = served
    names = [*tasks_for_trunks(tiny_tasks), "trunk1+trunk4*0.5", "trunk2+trunk1"]
    for name in names[-2:]:
        engine.load(name)
    layers, compiled = engine.compiler.layers, layers_of(engine)

    def answers(texts: Sequence[str]) -> list[list[float]]:
        engine.states.clear()
        reports.clear()
        found = []
        for _ in range(2):  # the second finds the states that the first has kept
            pending: list[Any] = engine.classify_many(names, texts, timeout=60)
            pending += [engine.embed(name, texts) for name in (names[0], names[1], None)]
            found += [numbers(future.result(60)) for its in pending for future in its.futures]
        assert "trunk" in {report.mode for report in reports}
        return found

    for texts in (TEXTS[:1], TEXTS):
        its = answers(texts)
        layers.compiled = None
        try:
            expected = answers(texts)
        finally:
            layers.compiled = compiled
        for a, b in zip(its, expected, strict=True):
            assert a == pytest.approx(b, abs=1e-4)
    assert engine.states.usage.hits > 0


def test_kept_states_are_those_of_compiled_layers(served: Served) -> None:
    engine, _ = served
    backbone, targets = engine.backbone, engine._targets
    with engine.arena.lock, torch.inference_mode():
        engine.arena.swap.to(None)
        engine.states.clear()
        patch, batch = upper(backbone, targets, 1, 5), sample_batch(backbone, 2, 6)
        right = alone(backbone, patch, batch)
        for rows in ([0], [0, 1], [0, 1]):  # none known, one, all
            texts: Any = [{"input_ids": batch["input_ids"][row].tolist()} for row in rows]
            plan = plan_trunk([(bytes([row]), texts[row], patch, 1) for row in rows], 2)
            kept = TextStates(engine.states, plan)
            run = TrunkPass(
                targets, plan, [side_of(targets, backbone, patch)], None, kept, passes=engine.compiler.layers
            )
            with run.on_model():
                found = backbone.module(**{name: tensor[rows] for name, tensor in batch.items()}).last_hidden_state
            kept.keep()
            torch.testing.assert_close(found, right[rows], atol=1e-4, rtol=1e-4)
    assert layers_of(engine)


def test_damage_is_seen_by_compiled_layers_and_mended_in_place(served: Served) -> None:
    engine, _ = served
    with engine.arena.lock, torch.inference_mode():
        engine.arena.swap.to(None)
        patches = [upper(engine.backbone, engine._targets, 1, 3)]
        wanted = [(0, 0), (0, 1), (2, 1)]
        before, _ = branched(engine, patches, wanted, None, 1 << 20)
        weight = dict(engine.backbone.module.named_parameters())["encoder.layer.0.attention.self.query.weight"]
        flip(weight, 0, 30)
        damaged, _ = branched(engine, patches, wanted, None, 1 << 20)
    assert not torch.allclose(before, damaged, atol=1e-3)
    repairs = engine.arena.repairs
    assert engine.arena.check_all() and engine.arena.repairs == repairs + 1
    with engine.arena.lock, torch.inference_mode():
        assert torch.equal(branched(engine, patches, wanted, None, 1 << 20)[0], before)
    assert layers_of(engine)


def test_rows_that_are_made_of_none_are_an_error(served: Served) -> None:
    """A program reads memory by what it is given: it looks first."""
    engine, _ = served
    compiled, targets = layers_of(engine), engine._targets
    with engine.arena.lock, torch.inference_mode():
        engine.arena.swap.to(None)
        _, (args, kwargs) = watch_layer(engine.backbone.module, compiled.stack)
        batch = MixedBatch(
            targets, [side_of(targets, engine.backbone, upper(engine.backbone, targets, 1, 3))], [(0, 0, 3)]
        )
        source = compiled.stack.hidden_of(args, kwargs)[:2]
        for rows, sound in (([0, 1, 1], True), ([0, 2, 1], False), ([0, -1, 1], False), ([0, 1], False)):
            with nullcontext() if sound else pytest.raises(EngineError, match="a compiled program failed"):
                assert compiled.output(1, args, kwargs, batch, (source, torch.tensor(rows))) is not None


def test_a_second_start_compiles_nothing(
    served: Served, tiny_tasks: TinyTasks, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setattr(program_cache, "_compile", lambda *_: pytest.fail("it was compiled before"))
    caplog.set_level(logging.INFO, "sparsehub")
    with Engine(load_backbone(str(tiny_tasks.folder)), mode="auto", compile_mode="on") as second:
        assert second.compiler.join(PATIENCE)
        assert sorted(layers_of(second).programs) == [0, 1]
    assert caplog.text.count("compiled layers are ready") == 1


def test_what_has_no_layers_for_a_graph_stays_eager(
    tiny_checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is anything compiled for an engine that runs no trunks."""
    for family, mode, said in (("llama", "auto", "past_key_values"), ("bert", "mixed", "no batch runs so")):
        engine = Engine(load_backbone(str(tiny_checkpoint(family))), mode=mode, compile_mode="on")
        assert said in str(engine.compiler._layer_call())
        engine.stop()
