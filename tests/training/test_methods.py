"""Every method from rows to a package that loads and verifies, and what each does against a plain version of itself."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sparsehub.backbone import load_backbone
from sparsehub.errors import UsageError
from sparsehub.package import read_package
from sparsehub.package.manifest import HEAD_METHOD
from sparsehub.package.reader import check_backbone
from sparsehub.package.task_model import TaskModel
from sparsehub.selection import rule_names
from sparsehub.tensorfile import load_tensors
from sparsehub.training import TrainConfig, fit, measure, train
from sparsehub.training.dense import DenseModel
from sparsehub.training.method import method_named, method_names
from sparsehub.training.methods.adapter import AdapterModel
from sparsehub.training.methods.child_pruning import ChildPruningModel
from sparsehub.training.methods.diff_pruning import GatedModel
from sparsehub.training.methods.lora import LoraModel
from sparsehub.training.methods.mixout import MixoutModel
from sparsehub.training.trainable import candidates

Configure = Callable[..., TrainConfig]
Batch = Mapping[str, Tensor]
CHANGING = [name for name in method_names() if name != HEAD_METHOD]  # `head`: tests/training/test_probe.py
EVERY = [name for name in CHANGING if method_named(name).packages]
# Budgets that each method keeps to on the tiny model; bitfit takes every bias, the dense ones everything.
DENSITY = {"bitfit": 0.1, "full": 1.0, "mixout": 1.0}


@pytest.mark.parametrize("method", EVERY)
def test_every_method_ends_in_a_package_that_fits_its_backbone(config: TrainConfig, method: str) -> None:
    density = DENSITY.get(method, 0.02)
    result = train(dataclasses.replace(config, method=method, density=density, epochs=2, calibration_batches=2))
    package = read_package(result.folder)
    backbone = load_backbone(config.backbone)
    check_backbone(package.manifest, backbone)
    assert package.manifest.delta.method == method
    assert 0 < package.delta.nnz <= round(density * backbone.arena.numel)
    assert package.manifest.metrics["validation"]["accuracy"] >= 0
    assert package.manifest.training["steps"] == 6


@pytest.mark.parametrize("method", CHANGING)
def test_afterwards_the_backbone_is_as_it_was_loaded(config: TrainConfig, tmp_path: Path, method: str) -> None:
    density = DENSITY.get(method, 0.02)
    fitted = fit(dataclasses.replace(config, method=method, density=density, epochs=1), tmp_path / "run")
    backbone = load_backbone(config.backbone)
    assert fitted.task_model.backbone.arena.digest() == backbone.arena.digest()
    hooked = [p for p in fitted.task_model.backbone.module.parameters() if p._post_accumulate_grad_hooks]
    assert not hooked and (fitted.delta is not None) == method_named(method).packages
    assert fitted.losses["validation"] > 0


def test_bitfit_and_full_need_no_density(config: TrainConfig, tmp_path: Path) -> None:
    found = {m: dataclasses.replace(config, method=m, density=None).resolved().density for m in ("bitfit", "full")}
    assert found == {"bitfit": 1.0, "full": 1.0}
    fitted = fit(dataclasses.replace(config, method="bitfit", density=None, epochs=1), tmp_path / "run")
    assert fitted.delta is not None
    assert {name.rpartition(".")[2] for name in fitted.delta.parameters} == {"bias"}


def test_a_budget_by_number_and_a_scope_by_patterns(config: TrainConfig, tmp_path: Path) -> None:
    scoped = dataclasses.replace(config, density=None, nnz=123, include=("encoder.*",), exclude=("*.bias",), epochs=1)
    fitted = fit(scoped, tmp_path / "run")
    assert fitted.delta is not None and fitted.delta.nnz <= 123
    assert all(n.startswith("encoder.") and n.endswith(".weight") for n in fitted.delta.parameters)
    assert sum(fitted.training["selection"].values()) == 123


def test_the_presets_settings_are_its_own_unless_they_are_given(config: TrainConfig) -> None:
    bare = dataclasses.replace(config, method="sam-released", density=None, calibration_batches=None)
    assert (bare.resolved().granularity, bare.resolved().calibration_batches) == ("tensor", 600)
    given = dataclasses.replace(bare, granularity="kind", calibration_batches=3).resolved()
    assert (given.granularity, given.calibration_batches) == ("kind", 3)


def test_what_was_chosen_is_reported_layer_by_layer(config: TrainConfig, tmp_path: Path) -> None:
    said: list[str] = []
    fitted = fit(dataclasses.replace(config, epochs=1), tmp_path / "run", report=said.append)
    assert set(fitted.training["selection"]) == {"embeddings", "encoder.layer.0", "encoder.layer.1", "pooler"}
    assert any(line.startswith("  encoder.layer.1: ") and line.endswith("%)") for line in said)


def test_a_head_that_was_warmed_up_is_trained_before_the_choice_and_kept_with_it(
    config: TrainConfig, tmp_path: Path
) -> None:
    warm = dataclasses.replace(config, head_steps=7, epochs=1)
    first = fit(warm, tmp_path / "run")
    kept = load_tensors(tmp_path / "run" / "selection.safetensors")
    assert "head.classifier.weight" in kept
    cold = fit(dataclasses.replace(config, epochs=1), tmp_path / "cold")
    assert first.delta is not None and cold.delta is not None
    assert any(
        not torch.equal(part.indices, cold.delta.parameters[name].indices)
        for name, part in first.delta.parameters.items()
        if name in cold.delta.parameters
    )
    again = fit(warm, tmp_path / "run")  # the mask and the head are found, and the last checkpoint
    assert all(torch.equal(again.head[name], first.head[name]) for name in first.head)


def test_the_head_is_warmed_up_over_as_many_epochs_as_it_takes(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[int] = []
    step = torch.optim.AdamW.step

    def counting(self: torch.optim.AdamW, *arguments: Any) -> Any:
        counted.append(1)
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.AdamW, "step", counting)
    fit(dataclasses.replace(config, head_steps=8, epochs=1, validation=None), tmp_path / "run")
    assert len(counted) == 8 + 3


def test_a_small_budget_for_a_dense_method_tells_what_it_cost(config: TrainConfig) -> None:
    result = train(dataclasses.replace(config, method="full", density=0.01))
    told = result.manifest.training["before_packaging"]
    assert 0 < told["share_of_squared_norm_kept"] < 1
    assert set(told["metrics"]) == {"validation"}
    assert result.manifest.delta.nnz <= round(0.01 * result.manifest.backbone.parameters)


def test_a_lora_is_kept_for_peft_beside_the_package(config: TrainConfig, tmp_path: Path) -> None:
    result = train(dataclasses.replace(config, method="lora", density=1.0, learning_rate=1e-2))
    assert result.aside == tmp_path / "out-lora"
    assert {path.name for path in result.aside.iterdir()} >= {"adapter_model.safetensors", "head.safetensors"}
    import peft
    from transformers import AutoModel

    model = peft.PeftModel.from_pretrained(AutoModel.from_pretrained(config.backbone), str(result.aside))
    merged = dict(model.merge_and_unload().named_parameters())
    base = dict(AutoModel.from_pretrained(config.backbone).named_parameters())
    package = read_package(result.folder)
    assert all(name.endswith(".weight") for name in package.delta.parameters)
    for name, part in package.delta.parameters.items():
        weight = base[name].detach().flatten().clone()
        weight[part.indices] += part.values
        torch.testing.assert_close(weight, merged[name].detach().flatten(), rtol=1e-4, atol=1e-6)


def test_an_adapter_is_measured_and_not_packaged(config: TrainConfig, tmp_path: Path) -> None:
    adapter = dataclasses.replace(config, method="adapter")
    with pytest.raises(UsageError, match="adapter adds layers to the model, and a package holds changes"):
        train(adapter)
    found = measure(adapter)
    assert {path.name for path in found.folder.iterdir()} == {"adapter.safetensors", "head.safetensors"}
    assert set(found.metrics) == {"validation", "validation (majority)"}
    assert {path.name for path in tmp_path.iterdir()} == {"out"}


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("mixout", {"probability": 1.0}, "probability is out of range"),
        ("lt-sft", {"first": 1.0}, "a share of the epochs"),
        ("child-pruning", {"every": 0}, "every so many steps"),
        ("adapter", {"size": 0}, "size is out of range"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    config: TrainConfig, tmp_path: Path, method: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        fit(dataclasses.replace(config, method=method, options=options), tmp_path / "run")


def test_unknown_options_and_wrong_types_are_refused_by_name(config: TrainConfig) -> None:
    with pytest.raises(UsageError, match="unknown option of mixout 'probabilty', did you mean 'probability'"):
        dataclasses.replace(config, method="mixout", options={"probabilty": 0.5})
    with pytest.raises(UsageError, match="option rank of lora has the wrong type; found: 'eight'; expected: int"):
        dataclasses.replace(config, method="lora", options={"rank": "eight"})
    assert dataclasses.replace(config, method="lora", options={"rank": "4"}).resolved().options["rank"] == 4


def test_every_method_tells_formula_source_and_cost() -> None:
    import importlib

    for name in set(method_names()) - set(rule_names()):
        text = importlib.import_module(method_named(name).module).__doc__ or ""
        for word in ("Formula: ", "Source: ", "Cost: "):
            assert word in text, (name, word)
        for option in method_named(name).options:
            assert f"`{option}`" in text, (name, option)


def names_of(task_model: TaskModel) -> list[str]:
    return list(candidates(task_model))


def plain_gradient(task_model: TaskModel, batch: Batch) -> Tensor:
    """Of all weights as they are now, in one flat vector."""
    parameters = dict(task_model.backbone.module.named_parameters())
    wanted = [parameters[name] for name in candidates(task_model)]
    loss = task_model.model(**batch).loss
    found = torch.autograd.grad(loss, wanted, allow_unused=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(wanted, found, strict=True)])


def test_full_fine_tuning_is_adamw_on_every_weight(task_model: TaskModel, batch: Batch) -> None:
    model = DenseModel(task_model, names_of(task_model), budget=10**9)
    start = model.base.clone()
    plain = torch.nn.Parameter(start.clone())
    optimizer = model.optimizer(learning_rate=1e-2, head_learning_rate=0.0, weight_decay=0.0)
    reference = torch.optim.AdamW([plain], lr=1e-2, weight_decay=0.0)
    for _ in range(4):
        model(**batch).loss.backward()
        assert all(p.grad is None for n, p in task_model.model.named_parameters() if n not in task_model.head)
        gradient = model.gradient().clone()
        torch.testing.assert_close(gradient, plain_gradient(task_model, batch), rtol=1e-4, atol=1e-7)
        plain.grad = gradient
        optimizer.step()
        reference.step()
        optimizer.zero_grad()
        torch.testing.assert_close(start + model.values.detach(), plain.detach(), rtol=1e-5, atol=1e-6)


def test_mixout_mixes_in_training_and_not_outside(task_model: TaskModel, batch: Batch) -> None:
    model = MixoutModel(task_model, names_of(task_model), 10**9, probability=0.75)
    with torch.no_grad():
        model.values.fill_(0.5)
    model.train()
    seen: list[Tensor] = []
    task_model.backbone.module.register_forward_pre_hook(
        lambda *_: seen.append(torch.cat([t.flatten() for t in candidates(task_model).values()]).clone())
    )
    for _ in range(2):
        model(**batch)
        change = (seen[-1] - model.base).round(decimals=3)
        assert set(change.unique().tolist()) == {0.0, 2.0}  # 0.5 / (1 - 0.75)
        assert abs(float((change == 0).float().mean()) - 0.75) < 0.02
    assert not torch.equal(seen[0], seen[1])
    model.eval()
    model(**batch)
    torch.testing.assert_close(seen[-1], model.base + 0.5)
    model.train()
    with torch.no_grad():  # evaluation in training mode draws nothing either
        model(**batch)
    torch.testing.assert_close(seen[-1], model.base + 0.5)


def test_mixouts_gradient_is_that_of_the_mixture(task_model: TaskModel, batch: Batch) -> None:
    for module in task_model.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    model = MixoutModel(task_model, names_of(task_model), 10**9, probability=0.5)
    with torch.no_grad():
        model.values.normal_(std=0.02)
    model.train()
    model(**batch).loss.backward()
    found, mixture = model.gradient().clone(), model._mixture.clone()
    expected = plain_gradient(task_model, batch) * mixture * 2  # the weights are still the mixture
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)


def test_child_pruning_is_projected_whenever_it_is_looked_at(task_model: TaskModel, batch: Batch) -> None:
    model = ChildPruningModel(task_model, names_of(task_model), budget=50, every=2)
    optimizer = model.optimizer(learning_rate=1e-2, head_learning_rate=1e-2, weight_decay=0.0)
    counts = []
    for _ in range(4):
        model.train()
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        counts.append(int((model.values != 0).sum()))
    assert counts[0] > 50 and counts[1] == 50 and counts[2] > 50 and counts[3] == 50
    model.train()
    model(**batch).loss.backward()
    optimizer.step()
    best = model.values.detach().abs().topk(50).indices.sort().values
    model.eval()
    assert torch.equal(model.values.nonzero().flatten(), best)
    now = torch.cat([tensor.flatten() for tensor in candidates(task_model).values()])
    torch.testing.assert_close(now, model.base + model.values.detach())
    assert model.delta("float32").nnz == 50 and model.kept == 1.0


def test_gates_are_hard_concrete_and_have_their_gradients(task_model: TaskModel, batch: Batch) -> None:
    """The hand-made chain rule against autograd through the formula."""
    for module in task_model.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    model = GatedModel(task_model, names_of(task_model), 100, penalty=3.0, rate=0.1, start=0.3)
    with torch.no_grad():
        model.values.normal_(std=0.02)
    model.train()
    torch.manual_seed(4)
    model(**batch).loss.backward()
    torch.manual_seed(4)
    noise = torch.rand_like(model.gates).clamp(1e-6, 1 - 1e-6)
    values = model.values.detach().clone().requires_grad_(True)
    gates = model.gates.detach().clone().requires_grad_(True)
    smooth = torch.sigmoid(torch.log(noise) - torch.log(1 - noise) + gates)
    z = (smooth * 3.0 - 1.5).clamp(0, 1)
    assert 0.05 < float((z == 0).float().mean()) < 0.95
    weights = model.base + z * values
    torch.testing.assert_close(
        torch.cat([t.flatten() for t in candidates(task_model).values()]), weights.detach(), rtol=1e-5, atol=1e-5
    )
    weights.backward(plain_gradient(task_model, batch))
    torch.testing.assert_close(model.gradient(), values.grad, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(model._gate_gradient(), gates.grad, rtol=1e-4, atol=1e-7)
    before = model._gate_gradient().clone()
    model._pay()
    likely = torch.sigmoid(gates.detach() - math.log(1.0))
    torch.testing.assert_close(model._gate_gradient() - before, 3.0 * likely * (1 - likely) / len(likely))


def test_a_closed_gate_leaves_the_weight_and_an_open_one_passes_it(task_model: TaskModel, batch: Batch) -> None:
    model = GatedModel(task_model, names_of(task_model), 3, penalty=0.0, rate=0.1, start=-20.0)
    with torch.no_grad():
        model.values.fill_(1.0)
        model.gates[[7, 9, 4000]] = 20.0
    model.eval()
    model(**batch)
    now = torch.cat([tensor.flatten() for tensor in candidates(task_model).values()])
    assert (now != model.base).nonzero().flatten().tolist() == [7, 9, 4000]
    changes = torch.cat(list(model.changes().values()))
    assert changes.nonzero().flatten().tolist() == [7, 9, 4000]


def test_gates_have_a_learning_rate_of_their_own_and_no_decay(task_model: TaskModel) -> None:
    model = GatedModel(task_model, names_of(task_model), 3, penalty=0.0, rate=0.1, start=5.0)
    optimizer = model.optimizer(learning_rate=1e-3, head_learning_rate=1e-2, weight_decay=0.5)
    found = [(len(g["params"]), g["lr"], g["weight_decay"]) for g in optimizer.param_groups]
    assert found == [(1, 1e-3, 0.5), (2, 1e-2, 0.5), (1, 0.1, 0.0)]
    assert optimizer.param_groups[2]["params"][0] is model.gates


@pytest.mark.parametrize("method", ["lt-sft", "diff-pruning"])
def test_a_second_phase_trains_the_largest_changes_of_the_first(
    config: TrainConfig, tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sparsehub.training.sparse_model import SparseModel

    starts: list[Tensor] = []
    kept = SparseModel.optimizer

    def look(self: SparseModel, **rates: float) -> Any:
        starts.append(self.values.detach().clone())
        return kept(self, **rates)

    monkeypatch.setattr(SparseModel, "optimizer", look)
    two = dataclasses.replace(config, method=method, epochs=4, options={"first": 0.25})
    fitted = fit(two, tmp_path / "run")
    found = load_tensors(tmp_path / "run" / "first-phase.safetensors")
    mask = {name.removeprefix("mask."): t for name, t in found.items() if name.startswith("mask.")}
    start = torch.cat([found[f"start.{name}"] for name in sorted(mask)])
    assert sum(map(len, mask.values())) == round(0.02 * fitted.task_model.backbone.arena.numel)
    assert torch.equal(starts[0], start if method == "diff-pruning" else torch.zeros_like(start))
    assert fitted.delta is not None
    for name, part in fitted.delta.parameters.items():
        assert set(part.indices.tolist()) <= set(mask[name].tolist())
    assert fitted.training["steps"] == 12  # of both phases


def test_lora_gradients_reach_the_adapter_and_the_head_alone(task_model: TaskModel, batch: Batch) -> None:
    before = task_model.backbone.arena.digest()
    names = ["encoder.layer.0.attention.self.query.weight", "encoder.layer.1.output.dense.weight", "pooler.dense.bias"]
    model = LoraModel(task_model, names, 40, r=2, lora_alpha=4.0, lora_dropout=0.0)
    assert len(model.own()) == 4
    optimizer = model.optimizer(learning_rate=1e-2, head_learning_rate=1e-2, weight_decay=0.0)
    for _ in range(3):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    trained = model(**batch).logits.detach()
    delta = model.delta("float32")
    assert delta.nnz == 40 and 0 < model.kept < 1 and set(delta.parameters) <= set(names[:2])
    model._budget = 10**9
    whole = model.delta("float32")
    assert model.kept == pytest.approx(1.0)
    model.clear()
    assert task_model.backbone.arena.digest() == before
    from sparsehub.patch import apply_patch, make_patch

    apply_patch(task_model.backbone.arena, make_patch(task_model.backbone, whole))
    torch.testing.assert_close(task_model.model(**batch).logits.detach(), trained, rtol=1e-4, atol=1e-5)


def test_a_lora_without_linear_layers_in_scope_is_refused(config: TrainConfig, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no linear layer in scope"):
        fit(dataclasses.replace(config, method="lora", include=("*.bias",)), tmp_path / "run")


def test_an_adapter_begins_as_nearly_nothing_and_sits_behind_every_sublayer(
    task_model: TaskModel, batch: Batch
) -> None:
    plain = task_model.model(**batch).logits
    model = AdapterModel(task_model, candidates(task_model), size=4)
    assert len(model.bottlenecks) == 4  # attention and feed-forward part of two layers
    torch.testing.assert_close(model(**batch).logits, plain, rtol=0.05, atol=1e-3)
    model(**batch).loss.backward()
    assert all(parameter.grad is not None for parameter in model.own().values())
    assert all(p.grad is None for p in task_model.backbone.module.parameters() if not p.requires_grad)


@pytest.mark.parametrize("family", ["distilbert", "llama", "gpt2", "modernbert"])
def test_adapters_and_loras_find_their_layers_in_every_family(
    make_config: Configure, tiny_checkpoint: Callable[[str], Path], tmp_path: Path, family: str
) -> None:
    config = make_config(backbone=str(tiny_checkpoint(family)), epochs=1, validation=None)
    adapter = fit(dataclasses.replace(config, method="adapter"), tmp_path / "adapter")
    tensors = load_tensors(adapter.aside / "adapter.safetensors") if adapter.aside else {}
    assert len(tensors) == 4 * 4
    lora = fit(dataclasses.replace(config, method="lora"), tmp_path / "lora")
    assert lora.delta is not None and lora.delta.nnz
