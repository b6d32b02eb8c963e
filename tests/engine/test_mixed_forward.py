"""Mixed batches against the same weights in place, row by row, for every family and dtype."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparsehub.backbone import Backbone, load_backbone
from sparsehub.delta import Delta, ParameterDelta
from sparsehub.engine.adapter_weights import AdapterWeights, make_adapter_weights
from sparsehub.engine.mixed_forward import MixedBatch
from sparsehub.engine.target_modules import (
    EMBEDDING,
    LINEAR,
    RMS_NORM,
    TargetModules,
    find_target_modules,
    sample_batch,
)
from sparsehub.patch import Patch, apply_patch, make_patch, restore_patch

pytestmark = pytest.mark.soak
FAMILIES = ["bert", "roberta", "distilbert", "deberta-v2", "modernbert", "llama", "gpt2"]
DTYPES = ["float32", "float16", "bfloat16"]
# Largest difference, as a share of the largest value: what rounding may add up to over two layers.
TOLERANCE = {"float32": 1e-5, "float16": 1e-2, "bfloat16": 6e-2}
Load = Callable[[str, str], tuple[Backbone, TargetModules]]
Bounds = Sequence[tuple[int, int, int]]


@pytest.fixture(scope="module")
def load(tiny_checkpoint: Callable[[str], Path]) -> Load:
    """load(family, dtype): a tiny backbone and its targets."""

    @functools.cache
    def loaded(family: str, dtype: str) -> tuple[Backbone, TargetModules]:
        backbone = load_backbone(str(tiny_checkpoint(family)), dtype=dtype)
        return backbone, find_target_modules(backbone)

    return loaded


def random_delta(
    backbone: Backbone, names: Sequence[str], seed: int, density: float, kind: str = "add", dtype: str = "float32"
) -> Delta:
    """At least one entry in each of `names`."""
    generator, parts = torch.Generator().manual_seed(seed), {}
    for name in names:
        slot = backbone.arena.slots[name]
        count = max(1, int(slot.numel * density))
        places = torch.randperm(slot.numel, generator=generator)[:count].sort().values
        values = torch.randn(count, generator=generator) * 0.3
        parts[name] = ParameterDelta(slot.shape, places, values.to(getattr(torch, dtype)))
    return Delta(parts, kind, dtype)


def mixable(backbone: Backbone, targets: TargetModules) -> list[str]:
    return [name for name, slot in backbone.arena.slots.items() if slot not in targets.others]


def side_of(targets: TargetModules, backbone: Backbone, patch: Patch) -> AdapterWeights:
    adapter = make_adapter_weights(targets, backbone.arena, patch)
    assert isinstance(adapter, AdapterWeights), adapter
    return adapter


@torch.inference_mode()
def run_mixed(
    backbone: Backbone,
    targets: TargetModules,
    adapters: Sequence[AdapterWeights | None],
    bounds: Bounds,
    batch: Mapping[str, Tensor],
) -> Tensor:
    with MixedBatch(targets, adapters, bounds).on_model():
        states: Tensor = backbone.module(**batch).last_hidden_state
    return states


@torch.inference_mode()
def run_in_place(
    backbone: Backbone, patches: Sequence[Patch | None], bounds: Bounds, batch: Mapping[str, Tensor]
) -> Tensor:
    """Each segment alone, with its task's weights in the arena."""
    parts = []
    for slot, start, stop in bounds:
        patch = patches[slot]
        if patch is not None:
            apply_patch(backbone.arena, patch)
        parts.append(backbone.module(**{k: v[start:stop] for k, v in batch.items()}).last_hidden_state)
        if patch is not None:
            restore_patch(backbone.arena, patch)
    return torch.cat(parts)


def assert_equal(found: Tensor, expected: Tensor, dtype: str, mask: Tensor) -> None:
    """Where there is no padding: what a model gives for padding means nothing."""
    real = mask.bool()
    difference = (found[real].float() - expected[real].float()).abs().max()
    assert difference <= TOLERANCE[dtype] * expected[real].abs().max().float()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_of_several_tasks_gives_what_their_weights_give(load: Load, family: str, dtype: str) -> None:
    """Two tasks of many entries, one of a few, the plain backbone; one task twice."""
    backbone, targets = load(family, dtype)
    names, before = mixable(backbone, targets), backbone.arena.digest()
    deltas = [random_delta(backbone, names, seed, density) for seed, density in enumerate((0.05, 0.3, 0.0))]
    patches: list[Patch | None] = [make_patch(backbone, delta) for delta in deltas]
    adapters: list[AdapterWeights | None] = [side_of(targets, backbone, patch) for patch in patches if patch]
    bounds = [(0, 0, 1), (1, 1, 3), (3, 3, 4), (2, 4, 6), (0, 6, 7)]
    batch = sample_batch(backbone, 7, 6)
    found = run_mixed(backbone, targets, [*adapters, None], bounds, batch)
    expected = run_in_place(backbone, [*patches, None], bounds, batch)
    plain = run_in_place(backbone, [None], [(0, 0, 7)], batch)
    assert_equal(found, expected, dtype, batch["attention_mask"])
    assert (plain - expected).abs().max() > 0.1, "the deltas change too little to tell anything"
    assert backbone.arena.digest() == before


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("bert", {"query": ("key", "value")}),
        ("distilbert", {"q_lin": ("k_lin", "v_lin")}),
        ("llama", {"q_proj": ("k_proj", "v_proj"), "gate_proj": ("up_proj",)}),
        ("gpt2", {}),
    ],
)
def test_maps_with_the_same_input_are_found(load: Load, family: str, expected: dict[str, tuple[str, ...]]) -> None:
    _, targets = load(family, "float32")
    last = [target.name.rpartition(".")[2] for target in targets.targets]
    layers = {
        target.name.rpartition(".")[0] for target in targets.targets if target.name.rpartition(".")[2] in expected
    }
    assert {last[first]: tuple(last[i] for i in others) for first, others in targets.shared.items()} == expected
    assert {targets.targets[first].name.rpartition(".")[0] for first in targets.shared} == layers
    for first, others in targets.shared.items():
        assert all(
            targets.targets[i].name.rpartition(".")[0] == targets.targets[first].name.rpartition(".")[0] for i in others
        )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("changed", [("q",), ("k",), ("k", "v"), ("q", "v"), ("q", "k", "v", "gate"), ("up",)], ids=str)
def test_some_of_the_maps_with_the_same_input(load: Load, changed: tuple[str, ...], dtype: str) -> None:
    """One task changes them, another changes something else."""
    backbone, targets = load("llama", dtype)
    names = [name for name in mixable(backbone, targets) if any(f".{part}_proj." in name for part in changed)]
    other = [name for name in mixable(backbone, targets) if "down_proj" in name]
    patches = [make_patch(backbone, random_delta(backbone, some, 3, 0.2)) for some in (names, other)]
    bounds = [(0, 0, 2), (1, 2, 5), (2, 5, 6)]
    batch = sample_batch(backbone, 6, 6)
    adapters = [side_of(targets, backbone, patch) for patch in patches]
    found = run_mixed(backbone, targets, [*adapters, None], bounds, batch)
    expected = run_in_place(backbone, [*patches, None], bounds, batch)
    assert_equal(found, expected, dtype, batch["attention_mask"])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_biases_of_the_backbone_count_once(tiny_checkpoint: Callable[[str], Path], family: str, dtype: str) -> None:
    """Zero ones, as a model is born with, would not show one too many or too few."""
    backbone = load_backbone(str(tiny_checkpoint(family)), dtype=dtype)
    generator = torch.Generator().manual_seed(8)
    for parameter in backbone.parameters.values():
        if parameter.ndim == 1:
            parameter.data += torch.randn(parameter.shape, generator=generator).to(parameter.dtype) / 2
    targets = find_target_modules(backbone)
    patches: list[Patch | None] = [
        make_patch(backbone, random_delta(backbone, mixable(backbone, targets), seed, 0.1)) for seed in (1, 2)
    ]
    adapters = [side_of(targets, backbone, patch) for patch in patches if patch]
    bounds, batch = [(0, 0, 2), (1, 2, 3), (2, 3, 5)], sample_batch(backbone, 5, 6)
    found = run_mixed(backbone, targets, [*adapters, None], bounds, batch)
    assert_equal(found, run_in_place(backbone, [*patches, None], bounds, batch), dtype, batch["attention_mask"])


@torch.inference_mode()
def test_a_map_that_gets_another_input_than_expected_computes_its_own(load: Load) -> None:
    """And nothing that was made ahead is left behind."""
    backbone, targets = load("bert", "float32")
    adapter = side_of(
        targets, backbone, make_patch(backbone, random_delta(backbone, mixable(backbone, targets), 4, 0.2))
    )
    batch = MixedBatch(targets, [adapter], [(0, 0, 2)])
    first, others = next(iter(targets.shared.items()))
    query, key, value = (targets.targets[i].module for i in (first, *others))
    x, y = torch.randn(2, 3, query.in_features), torch.randn(2, 3, query.in_features)
    with batch.on_model():
        own = [key(y), value(x)]
        query(x)
        assert batch.done.keys() == set(others)
        after = [key(y), value(x)]
        query(y)
    assert all(torch.equal(a, b) for a, b in zip(own, after, strict=True))
    assert not batch.done


@pytest.mark.parametrize("odd", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_only_a_plain_rms_norm_runs_in_the_kernel(
    tiny_checkpoint: Callable[[str], Path], dtype: str, odd: bool
) -> None:
    """One that does anything else to its rows keeps its own code, and its tasks their scales."""
    backbone = load_backbone(str(tiny_checkpoint("llama")), dtype=dtype)
    norms = [module for module in backbone.module.modules() if type(module).__name__ == "LlamaRMSNorm"]

    class OddRMSNorm(type(norms[0])):  # type: ignore[misc]
        def forward(self, x: Tensor) -> Tensor:
            normal = torch.nn.functional.rms_norm(x, x.shape[-1:], eps=self.variance_epsilon)
            return self.weight * torch.tanh(normal)

    for norm in norms if odd else ():
        norm.__class__ = OddRMSNorm
    targets = find_target_modules(backbone)
    found = [target.epsilon for target in targets.targets if target.kind == RMS_NORM]
    assert found == [None if odd else backbone.config.rms_norm_eps] * len(norms) and norms
    names = [name for name in mixable(backbone, targets) if "norm" in name]
    patch, batch = make_patch(backbone, random_delta(backbone, names, 3, 0.5)), sample_batch(backbone, 2, 5)
    bounds = [(0, 0, 1), (1, 1, 2)]
    mixed = run_mixed(backbone, targets, [side_of(targets, backbone, patch), None], bounds, batch)
    assert_equal(mixed, run_in_place(backbone, [patch, None], bounds, batch), dtype, batch["attention_mask"])


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_alone(load: Load, family: str) -> None:
    """A change that is lost in one module of many would be small in the sum."""
    backbone, targets = load(family, "float32")
    batch = sample_batch(backbone, 2, 5)
    for seed, name in enumerate(mixable(backbone, targets)):
        patch = make_patch(backbone, random_delta(backbone, [name], seed, 0.5))
        adapter = side_of(targets, backbone, patch)
        found = run_mixed(backbone, targets, [adapter, None], [(0, 0, 1), (1, 1, 2)], batch)
        expected = run_in_place(backbone, [patch, None], [(0, 0, 1), (1, 1, 2)], batch)
        assert_equal(found, expected, "float32", batch["attention_mask"])


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_batch(load: Load, family: str, data: st.DataObject) -> None:
    """Ragged lengths, repeated tasks, one-entry deltas, deltas of a few parameters, a whole row or column changed."""
    backbone, targets = load(family, "float32")
    names = mixable(backbone, targets)
    patches: list[Patch | None] = [None]
    for seed in range(data.draw(st.integers(1, 3))):
        chosen = data.draw(st.lists(st.sampled_from(names), min_size=1, max_size=4, unique=True))
        density = data.draw(st.sampled_from([0.0, 0.02, 1.0]))
        patches.append(make_patch(backbone, random_delta(backbone, chosen, seed, density)))
    adapters = [None if patch is None else side_of(targets, backbone, patch) for patch in patches]
    counts = data.draw(st.lists(st.tuples(st.integers(0, len(patches) - 1), st.integers(1, 3)), min_size=1, max_size=5))
    bounds, start = [], 0
    for slot, rows in [(1, 1), *counts]:
        bounds.append((slot, start, start + rows))
        start += rows
    length = data.draw(st.integers(1, 9))
    batch = sample_batch(backbone, start, length, seed=data.draw(st.integers(0, 9)))
    for row in range(start):
        batch["attention_mask"][row, data.draw(st.integers(1, length)) :] = 0
    found = run_mixed(backbone, targets, adapters, bounds, batch)
    assert_equal(found, run_in_place(backbone, patches, bounds, batch), "float32", batch["attention_mask"])


def test_whole_rows_and_columns(load: Load) -> None:
    backbone, targets = load("bert", "float32")
    name = "encoder.layer.0.attention.self.query.weight"
    out, inside = backbone.arena.slots[name].shape
    whole = torch.arange(out * inside).view(out, inside)
    bounds, batch = [(0, 0, 2)], sample_batch(backbone, 2, 6)
    for places in (whole[3], whole[:, 5], whole.flatten()):
        part = ParameterDelta((out, inside), places, torch.randn(len(places)))
        patch = make_patch(backbone, Delta({name: part}, "add", "float32"))
        found = run_mixed(backbone, targets, [side_of(targets, backbone, patch)], bounds, batch)
        assert_equal(found, run_in_place(backbone, [patch], bounds, batch), "float32", batch["attention_mask"])


@pytest.mark.parametrize("dtype", DTYPES)
def test_values_that_are_set_and_not_added(load: Load, dtype: str) -> None:
    backbone, targets = load("bert", dtype)
    patch = make_patch(backbone, random_delta(backbone, mixable(backbone, targets), 5, 0.05, "set", dtype))
    batch = sample_batch(backbone, 2, 6)
    found = run_mixed(backbone, targets, [side_of(targets, backbone, patch)], [(0, 0, 2)], batch)
    assert_equal(found, run_in_place(backbone, [patch], [(0, 0, 2)], batch), dtype, batch["attention_mask"])


def test_nothing_is_left_on_the_model(load: Load) -> None:
    backbone, targets = load("bert", "float32")
    patch = make_patch(backbone, random_delta(backbone, mixable(backbone, targets), 1, 0.05))
    batch = sample_batch(backbone, 1, 4)
    mixed = MixedBatch(targets, [side_of(targets, backbone, patch)], [(0, 0, 1)])
    with pytest.raises(RuntimeError, match="on purpose"), mixed.on_model():
        assert any("forward" in module.__dict__ for module in backbone.module.modules())
        raise RuntimeError("on purpose")
    assert not any("forward" in module.__dict__ for module in backbone.module.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in backbone.module.modules())
    with torch.inference_mode():
        plain = backbone.module(**batch).last_hidden_state
        assert torch.equal(plain, backbone.module(**batch).last_hidden_state)


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "modernbert", "llama", "gpt2"])
def test_every_place_of_these_families_can_be_mixed(load: Load, family: str) -> None:
    backbone, targets = load(family, "float32")
    assert not targets.others
    assert set(targets.uses) == set(backbone.arena.slots.values())


def test_what_cannot_be_mixed_says_why(load: Load) -> None:
    """DeBERTa's query and key also see the table of relative positions, which belongs to no row."""
    backbone, targets = load("deberta-v2", "float32")
    for name, reason in [
        ("encoder.layer.0.attention.self.query_proj.weight", "does not see its input row by row"),
        ("encoder.rel_embeddings.weight", "is not called: its weights are used directly"),
        ("encoder.LayerNorm.weight", "does not see its input row by row"),
    ]:
        patch = make_patch(backbone, random_delta(backbone, [name], 1, 0.1))
        found = make_adapter_weights(targets, backbone.arena, patch)
        assert isinstance(found, str) and reason in found and name.rpartition(".")[0] in found
    fine = make_patch(backbone, random_delta(backbone, ["encoder.layer.0.attention.self.value_proj.weight"], 1, 0.1))
    assert isinstance(make_adapter_weights(targets, backbone.arena, fine), AdapterWeights)


def test_a_side_holds_no_more_than_it_says(load: Load) -> None:
    backbone, targets = load("bert", "float32")
    patch = make_patch(backbone, random_delta(backbone, mixable(backbone, targets), 1, 0.05))
    adapter = side_of(targets, backbone, patch)
    tensors: list[Any] = [adapter.addresses]
    for part in adapter.parts.values():
        tensors += [value for value in vars(part).values() if isinstance(value, Tensor)]
    assert adapter.nbytes == sum(tensor.nbytes for tensor in tensors)
    kinds = {targets.targets[index].kind for index in adapter.parts}
    assert {LINEAR, EMBEDDING} <= kinds


@pytest.mark.slow
def test_a_compiled_forward_stays_what_it_was(load: Load) -> None:
    """Storage never moves and nothing stays on the module: a compiled plain forward sees swaps and outlives mixing."""
    backbone, targets = load("bert", "float32")
    patch = make_patch(backbone, random_delta(backbone, mixable(backbone, targets), 1, 0.05))
    batch, traces = sample_batch(backbone, 2, 6), []

    def counting(graph: Any, _: Any) -> Any:
        traces.append(graph)
        return graph.forward

    compiled = torch.compile(backbone.module, backend=counting)
    with torch.no_grad():
        plain = compiled(**batch).last_hidden_state.clone()
        seen = len(traces)
        run_mixed(backbone, targets, [side_of(targets, backbone, patch)], [(0, 0, 2)], batch)
        assert torch.equal(compiled(**batch).last_hidden_state, plain)
        apply_patch(backbone.arena, patch)
        changed = compiled(**batch).last_hidden_state
        restore_patch(backbone.arena, patch)
        assert_equal(changed, run_in_place(backbone, [patch], [(0, 0, 2)], batch), "float32", batch["attention_mask"])
        assert torch.equal(compiled(**batch).last_hidden_state, plain) and len(traces) == seen >= 1
