"""Compiled mixed passes: one program for any tasks, equal to eager ones and to each task's weights in place."""

from __future__ import annotations

import copy
import dataclasses
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sparsehub.backbone import Backbone, load_backbone
from sparsehub.engine.adapter_weights import AdapterWeights
from sparsehub.engine.base_weights import prepared_targets
from sparsehub.engine.compiled.mixed_graph import MixedGraph, why_no_graph
from sparsehub.engine.compiled.mixed_pass import MixedPass, arguments_of
from sparsehub.engine.compiled.plain_pass import CompiledPass
from sparsehub.engine.compiled.program_files import ARGUMENTS
from sparsehub.engine.compiled.proof import compare, compare_changed, trial_tasks
from sparsehub.engine.cost_model import MIXED, CalibrationPoints, CompiledCurve, CostModel, RowGroup
from sparsehub.engine.int8 import int8_linears
from sparsehub.engine.mixed_forward import MixedBatch
from sparsehub.engine.target_modules import RMS_NORM, TargetModules, find_target_modules, sample_batch
from sparsehub.errors import EngineError
from sparsehub.kernels import native_module
from sparsehub.patch import make_patch
from tests.engine.test_mixed_forward import mixable, random_delta, run_mixed, side_of

needs_exports = pytest.mark.skipif(not native_module.exports(), reason="compiled mixed passes need the native kernels")
FAMILIES = ["bert", "roberta", "distilbert", "modernbert", "llama", "gpt2"]
Bounds = Sequence[tuple[int, int, int]]
# (slot, first row, row after the last), and tokens: one task, a task for each row, several rows, the plain backbone
BATCHES: Sequence[tuple[Bounds, int]] = (
    ([(0, 0, 1)], 2),
    ([(1, 0, 1), (2, 1, 2), (3, 2, 3), (0, 3, 4)], 5),
    ([(2, 0, 3), (0, 3, 9)], 33),
    ([(3, 0, 1), (1, 1, 2)], 9),
    ([(0, 0, 1), (1, 1, 3), (0, 3, 4), (2, 4, 11)], 17),
)


def tasks_on(backbone: Backbone, targets: TargetModules) -> tuple[list[Any], list[AdapterWeights | None]]:
    """Tasks of many entries, of one in each place, of one place alone; and the plain backbone."""
    names = mixable(backbone, targets)
    deltas = [random_delta(backbone, names, 1, 0.05), random_delta(backbone, names, 2, 0.0)]
    deltas.append(random_delta(backbone, names[-1:], 3, 0.5))
    patches = [make_patch(backbone, delta) for delta in deltas]
    return [*patches, None], [*(side_of(targets, backbone, patch) for patch in patches), None]


@needs_exports
@pytest.mark.parametrize("family", FAMILIES)
def test_the_graph_of_a_family_computes_its_mixed_pass(tiny_checkpoint: Callable[[str], Path], family: str) -> None:
    backbone = load_backbone(str(tiny_checkpoint(family)))
    targets = find_target_modules(backbone)
    assert why_no_graph(targets) is None
    _, adapters = tasks_on(backbone, targets)
    graph = MixedGraph(targets)
    for bounds, length in BATCHES:
        batch = sample_batch(backbone, bounds[-1][2], length)
        mixed = MixedBatch(targets, adapters, bounds)
        arguments = arguments_of(mixed, length)
        with torch.inference_mode(), graph.on_model():
            graph.begin(bounds[-1][2], *(arguments[name] for name in ARGUMENTS))
            found = backbone.module(**batch).last_hidden_state
        torch.testing.assert_close(found, run_mixed(backbone, targets, adapters, bounds, batch), atol=1e-4, rtol=1e-4)
    assert not any("forward" in module.__dict__ for module in backbone.module.modules())


def test_what_no_graph_can_carry_says_why(tiny_checkpoint: Callable[[str], Path]) -> None:
    targets = find_target_modules(load_backbone(str(tiny_checkpoint("llama"))))
    norm = next(target for target in targets.targets if target.kind == RMS_NORM)
    odd = tuple(dataclasses.replace(t, epsilon=None) if t is norm else t for t in targets.targets)
    assert why_no_graph(targets) is None
    assert f"{norm.name} (LlamaRMSNorm) is a norm" in (why_no_graph(dataclasses.replace(targets, targets=odd)) or "")
    with pytest.raises(EngineError, match="which no graph is made for"):
        MixedGraph(targets).blocks_of(norm, 3)


class _Fake:
    """A program that runs a graph of its own, and may add something to what it returns."""

    def __init__(self, backbone: Backbone, targets: TargetModules, error: float = 0.0, int8: Collection[int] = ()):
        self.inputs = ("input_ids", "attention_mask", "token_type_ids", *ARGUMENTS)
        self._module, self._graph, self._error = backbone.module, MixedGraph(targets, int8), error

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        own = {name: value for name, value in inputs.items() if name not in ARGUMENTS}
        with self._graph.on_model():
            self._graph.begin(len(own["input_ids"]), *(inputs[name] for name in ARGUMENTS))
            found = self._module(**own)
        return {name: value + self._error for name, value in found.items() if isinstance(value, Tensor)}


@needs_exports
def test_a_mixed_program_is_refused_that_is_wrong(tiny_checkpoint: Callable[[str], Path]) -> None:
    backbone = load_backbone(str(tiny_checkpoint("bert")))
    targets, base = find_target_modules(backbone), backbone.arena.digest()
    tasks = trial_tasks(backbone, targets)
    assert [adapter is None for adapter in tasks.adapters] == [False, False, True]
    right: Any = _Fake(backbone, targets)
    compare(backbone, right, 5, 6, tasks)
    compare_changed(backbone, right, tasks)
    for error in (1e-3, float("nan")):
        wrong: Any = _Fake(backbone, targets, error)
        with pytest.raises(EngineError, match="a compiled pass is wrong: last_hidden_state of 3 x 4"):
            compare(backbone, wrong, 3, 4, tasks)
    copied = dataclasses.replace(backbone, module=copy.deepcopy(backbone.module))
    stale: Any = _Fake(copied, find_target_modules(copied))
    compare(backbone, stale, 3, 4, tasks)
    with pytest.raises(EngineError, match="a compiled pass is wrong"):
        compare_changed(backbone, stale, tasks)
    assert backbone.arena.digest() == base


@needs_exports
def test_a_program_on_int8_weights_is_refused_that_is_wrong(tiny_checkpoint: Callable[[str], Path]) -> None:
    """It may round a value to the next level, no more."""
    backbone = load_backbone(str(tiny_checkpoint("bert")))
    targets = prepared_targets(backbone, "int8", allow_quantised=True)
    tasks, int8 = trial_tasks(backbone, targets), int8_linears(targets)
    right: Any = _Fake(backbone, targets, int8=int8)
    compare(backbone, right, 5, 6, tasks)
    compare_changed(backbone, right, tasks)
    for error in (0.5, float("nan")):
        wrong: Any = _Fake(backbone, targets, error, int8)
        with pytest.raises(EngineError, match="a compiled pass is wrong: last_hidden_state of 3 x 4"):
            compare(backbone, wrong, 3, 4, tasks)


def test_a_mixed_program_that_fails_is_used_no_more(tiny_checkpoint: Callable[[str], Path], caplog: Any) -> None:
    class Failing:
        inputs = ("input_ids", "attention_mask", *ARGUMENTS)

        def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
            raise EngineError("a compiled program failed")

    backbone = load_backbone(str(tiny_checkpoint("bert")))
    targets = find_target_modules(backbone)
    mixed, batch = MixedPass(backbone), sample_batch(backbone, 11, 17)
    mixed.compiled = CompiledPass(Failing(), dict, CompiledCurve([(8, 0.5)]))  # type: ignore[arg-type]
    adapters, bounds = tasks_on(backbone, targets)[1], BATCHES[-1][0]
    with torch.inference_mode(), caplog.at_level(logging.ERROR, "sparsehub"):
        found = mixed(MixedBatch(targets, adapters, bounds), batch).last_hidden_state
    assert torch.equal(found, run_mixed(backbone, targets, adapters, bounds, batch))
    assert mixed.compiled is None and caplog.text.count("mixed passes are eager from here on") == 1


def test_damaged_tables_never_reach_a_program(tiny_checkpoint: Callable[[str], Path]) -> None:
    backbone = load_backbone(str(tiny_checkpoint("bert")))
    targets = find_target_modules(backbone)
    batch = MixedBatch(targets, tasks_on(backbone, targets)[1], [(0, 0, 1), (1, 1, 2)])
    batch.tables().view(-1)[3] ^= 1 << 20
    with pytest.raises(EngineError, match="address tables in memory are damaged"):
        arguments_of(batch, 4)


def test_a_compiled_mixed_pass_counts_where_a_way_is_chosen() -> None:
    costs = CostModel(CalibrationPoints([(8, 0.01), (512, 0.1)], [(10, 0.0), (20, 0.0)], []))
    groups = [RowGroup(8, 5, 1, 8), RowGroup(8, 5, 1, 8)]
    eager = costs.predict(MIXED, groups)
    costs.compiled_mixed = CompiledCurve([(8, 0.5), (512, 0.5)])
    assert costs.predict(MIXED, groups) == pytest.approx(eager / 2)
