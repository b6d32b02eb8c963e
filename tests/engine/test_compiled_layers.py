"""Layers of trunks and branches as programs: equal to the layers themselves wherever rows branch, used where they are
faster. What is really compiled is in `test_compiled_trunks.py`."""

from __future__ import annotations

import copy
import dataclasses
import functools
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sparsehub.backbone import Backbone, load_backbone
from sparsehub.engine.compiled.layer_call import LayerCall, name_of, watch_layer, with_leaves
from sparsehub.engine.compiled.layer_graph import LayerGraph, targets_of
from sparsehub.engine.compiled.layer_programs import CompiledLayers, LayerPasses, LayerProgram
from sparsehub.engine.compiled.layer_proof import measure_layers, right_changed, right_layers
from sparsehub.engine.compiled.program_files import LAYER_ARGUMENTS, STATES
from sparsehub.engine.compiled.proof import trial_tasks
from sparsehub.engine.cost_model import TRUNK, CalibrationPoints, CompiledCurve, CostModel, RowGroup, TrunkSizes
from sparsehub.engine.layer_stack import tensors_of
from sparsehub.engine.mixing_check import checked_targets
from sparsehub.engine.one_token import OneToken
from sparsehub.engine.target_modules import TargetModules, find_target_modules, sample_batch
from sparsehub.engine.trunk_check import with_layers
from sparsehub.engine.trunk_forward import TrunkPass
from sparsehub.engine.trunk_plan import plan_trunk
from sparsehub.errors import EngineError
from tests.engine.test_compiled_mixed import needs_exports
from tests.engine.test_mixed_forward import side_of
from tests.engine.test_trunk import alone, upper

FAMILIES = ["bert", "roberta", "distilbert", "deberta-v2", "modernbert"]
ALWAYS = CompiledCurve([(8, 1.0)], always=True)
# Texts and tasks (0 is the plain backbone), and the tokens of branches that go through a layer together.
PLANS = (
    ([(0, 0), (0, 2), (1, 2), (1, 1)], 1 << 20),
    ([(text, task) for task in (3, 1, 2, 0, 2) for text in range(3)], 1 << 20),
    ([(text, task) for task in (3, 3, 2, 1) for text in (2, 0)], 14),
    ([(0, 1)], 1 << 20),
)


class _Fake:
    """A program of one layer that runs a graph in Python, on a copy of the model that has the same weights."""

    def __init__(self, copied: Any, targets: TargetModules, index: int, call: LayerCall, example: Any):
        layers = next(m for m in copied.modules() if isinstance(m, torch.nn.ModuleList) and len(m) > 1)
        self._layer, self._call, self._example = layers[index], call, example
        self._graph = LayerGraph(targets_of(targets, self._layer))
        self.inputs, self.calls, self.error = (*call.tensors, *LAYER_ARGUMENTS), 0, 0.0

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        self.calls += 1
        with self._graph.on_model():
            self._graph.begin_layer(inputs[self._call.hidden], *(inputs[name] for name in LAYER_ARGUMENTS))
            args, kwargs = with_leaves(self._example, {name: inputs[name] for name in self._call.tensors})
            (states,) = (tensor for _, tensor in tensors_of(self._layer(*args, **kwargs)))
        return {STATES: states + self.error}


def faked(backbone: Backbone, targets: TargetModules) -> CompiledLayers:
    """Layers by graphs that are run in Python: of weights where they are, but for what no task of the tests changes."""
    assert targets.layers is not None
    call, example = watch_layer(backbone.module, targets.layers)
    memo: dict[int, Any] = {id(p): p for p in (*backbone.module.parameters(), *backbone.module.buffers())}
    copied = dataclasses.replace(backbone, module=copy.deepcopy(backbone.module, memo))
    its = find_target_modules(copied)
    programs = {}
    for index, layer in enumerate(targets.layers.modules):
        own = [target.index for target in targets.targets if target.module in set(layer.modules())]
        readers = [targets.targets[reader] for reader in targets.layers.readers[index]]
        fake: Any = _Fake(copied.module, its, index, call, example)
        programs[index] = LayerProgram(fake, own, all(reader.base is None for reader in readers))
    return CompiledLayers(targets, targets.layers, call, programs, ALWAYS, ALWAYS)


@pytest.fixture(scope="module")
def load(tiny_checkpoint: Callable[[str], Path]) -> Callable[[str], tuple[Backbone, TargetModules]]:
    @functools.cache
    def loaded(family: str) -> tuple[Backbone, TargetModules]:
        backbone = load_backbone(str(tiny_checkpoint(family)))
        return backbone, with_layers(backbone, checked_targets(backbone))

    return loaded


@needs_exports
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("one_token", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_a_trunk_of_programs_gives_what_its_tasks_weights_give(
    load: Callable[[str], tuple[Backbone, TargetModules]], family: str, one_token: bool, padded: bool
) -> None:
    """Tasks that change everything, the layers, the last one; several branch points, parts, heads of one token."""
    backbone, targets = load(family)
    assert targets.layers is not None
    layers = len(targets.layers.modules)
    patches = [None, *(upper(backbone, targets, first, seed) for seed, first in enumerate((layers - 1, 0, -1)))]
    adapters = [side_of(targets, backbone, patch) for patch in patches if patch is not None]
    compiled, passes, batch = faked(backbone, targets), LayerPasses(), sample_batch(backbone, 3, 7)
    passes.compiled = compiled
    if padded:
        batch["attention_mask"][1, 4:] = 0
    right = [alone(backbone, patch, batch) for patch in patches]
    for wanted, together in PLANS:
        plan = plan_trunk([(t, t, k, adapters[k - 1].first if k else layers) for t, k in wanted], layers)
        index = torch.tensor([plan.texts[text] for text in plan.stages[0].texts])
        reads = OneToken(targets.layers, torch.full((len(plan.stages[-1].rows),), 2)) if one_token else None
        used = [adapters[int(str(task)) - 1] for task in plan.slots]
        run = TrunkPass(targets, plan, used, reads, together=together, passes=passes)
        with torch.inference_mode(), run.on_model():
            found = backbone.module(**{name: tensor[index] for name, tensor in batch.items()}).last_hidden_state
        for place, (text, task) in zip(plan.places, wanted, strict=True):
            real = batch["attention_mask"][text].bool()
            expected = right[task][text][real]
            expected = expected[2].expand_as(expected) if one_token else expected
            torch.testing.assert_close(found[place][real], expected, atol=1e-4, rtol=1e-4)
    programs: list[Any] = [own.program for own in compiled.programs.values()]
    assert sum(program.calls for program in programs) >= len(PLANS) and passes.compiled is compiled
    assert not any("forward" in module.__dict__ for module in backbone.module.modules())


@needs_exports
def test_only_layers_are_used_that_are_right(load: Callable[[str], tuple[Backbone, TargetModules]]) -> None:
    backbone, targets = load("bert")
    tasks, layers, base = trial_tasks(backbone, targets), faked(backbone, targets), backbone.arena.digest()
    assert right_layers(backbone, layers, 5, 6, tasks) == {0, 1} == right_changed(backbone, layers, tasks)
    odd: Any = layers.programs[1].program
    for error in (0.1, float("nan")):
        odd.error = error
        assert right_layers(backbone, layers, 2, 3, tasks) == {0} == right_changed(backbone, layers, tasks)
    assert backbone.arena.digest() == base
    for its in (None, tasks):
        assert all(seconds > 0 for seconds in measure_layers(backbone, layers, 2, 3, its))


def test_what_no_graph_can_take_says_why(load: Callable[[str], tuple[Backbone, TargetModules]]) -> None:
    backbone, targets = load("llama")
    assert targets.layers is not None
    with pytest.raises(EngineError, match=r"layers are called with past_key_values \(DynamicCache\)"):
        watch_layer(backbone.module, targets.layers)


def test_another_kind_of_call_is_not_taken(load: Callable[[str], tuple[Backbone, TargetModules]]) -> None:
    backbone, targets = load("bert")
    assert targets.layers is not None
    call, (args, kwargs) = watch_layer(backbone.module, targets.layers)
    given = call.arguments(args, kwargs)
    assert given is not None and list(given) == list(call.tensors)
    mask = next(name for name, (_, dtype) in call.tensors.items() if dtype == torch.bool)
    whole = call.arguments(*without(args, kwargs, mask, None))
    assert whole is not None and bool(whole[mask].all()) and whole[mask].shape == given[mask].shape
    for name, value in ((mask, given[mask].float()), (mask, given[mask][:, :, :1]), (next(iter(call.others)), 1)):
        assert call.arguments(*without(args, kwargs, name, value)) is None
    assert call.arguments(args, {**kwargs, "another": True}) is None
    assert name_of((1, "attention_mask", 0)) == "attention_mask.0"


def without(args: Any, kwargs: Any, name: str, value: Any) -> Any:
    """A call with another value in one place."""
    return with_leaves((args, kwargs), {name: value})


@needs_exports
def test_a_program_that_fails_is_used_no_more(
    load: Callable[[str], tuple[Backbone, TargetModules]], caplog: Any
) -> None:
    class Failing:
        def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
            raise EngineError("a compiled program failed")

    backbone, targets = load("bert")
    patch = upper(backbone, targets, 1, 1)
    adapter, batch, passes = side_of(targets, backbone, patch), sample_batch(backbone, 2, 5), LayerPasses()
    programs = {
        index: dataclasses.replace(own, program=Failing()) for index, own in faked(backbone, targets).programs.items()
    }
    passes.compiled = dataclasses.replace(faked(backbone, targets), programs=programs)
    plan = plan_trunk([(text, text, task, 1 if task else 2) for task in range(2) for text in range(2)], 2)
    with torch.inference_mode(), caplog.at_level(logging.ERROR, "sparsehub"):
        with TrunkPass(targets, plan, [adapter], passes=passes).on_model():
            found = backbone.module(**batch).last_hidden_state
        with TrunkPass(targets, plan, [adapter]).on_model():
            assert torch.equal(found, backbone.module(**batch).last_hidden_state)
    assert passes.compiled is None and caplog.text.count("trunks and branches are eager from here on") == 1


@needs_exports
def test_programs_are_used_where_they_were_faster(load: Callable[[str], tuple[Backbone, TargetModules]]) -> None:
    backbone, targets = load("bert")
    passes, layers = LayerPasses(), faked(backbone, targets)
    passes.compiled = dataclasses.replace(
        layers, trunk=CompiledCurve([(8, 0.5), (64, 1.5)]), branches=CompiledCurve([(8, 1.5), (64, 0.5)])
    )
    used = [
        passes.compiled.used(torch.empty(rows, length, 32), branches=branches)
        for rows, length, branches in ((2, 4, False), (8, 8, False), (2, 4, True), (8, 8, True), (64, 1, True))
    ]
    assert used == [True, False, False, True, False]


def test_compiled_layers_count_where_a_way_is_chosen() -> None:
    costs = CostModel(CalibrationPoints([(8, 0.01), (512, 0.1)], [(10, 0.0), (20, 0.0)], []))
    trunk = TrunkSizes([(0.5, 8), (0.25, 512), (0.25, 512)], [RowGroup(512, 5, 1, 512)])
    assert costs.predict(TRUNK, [], trunk=trunk) == pytest.approx(0.055)
    costs.compiled_trunk = CompiledCurve([(8, 0.5), (512, 0.5)])
    assert costs.predict(TRUNK, [], trunk=trunk) == pytest.approx(0.0525)
    costs.compiled_branches = CompiledCurve([(8, 0.8), (512, 0.8)])
    assert costs.predict(TRUNK, [], trunk=trunk) == pytest.approx(0.0425)
