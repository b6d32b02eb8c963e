"""Sampled gradients of Linear weights are the dense ones at the positions, and nothing of them is left behind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sparsehub.backbone import open_checkpoint
from sparsehub.package.task_model import TaskModel, load_task_model
from sparsehub.package.task_spec import TaskSpec
from sparsehub.selection import SelectionRequest, select
from sparsehub.training import sampled_gradients
from sparsehub.training.activation_checkpointing import checkpoint_activations
from sparsehub.training.sparse_model import SparseModel
from sparsehub.training.trainable import candidates

Batch = Mapping[str, Tensor]
TinyCheckpoint = Callable[[str], Path]


def gradients(task_model: TaskModel, mask: Mapping[str, Tensor], batch: Batch, *, sampled: bool) -> Tensor:
    model = SparseModel(task_model, mask, sampled=sampled)
    for _ in range(2):  # they add up
        model(**batch).loss.backward()
    assert model.values.grad is not None
    found = model.values.grad.clone()
    model.clear()
    return found


@pytest.mark.parametrize("family", ["bert", "distilbert", "deberta-v2", "modernbert", "llama", "gpt2"])
def test_sampled_gradients_are_the_dense_ones(tiny_checkpoint: TinyCheckpoint, task: TaskSpec, family: str) -> None:
    checkpoint = open_checkpoint(str(tiny_checkpoint(family)))
    torch.manual_seed(0)
    task_model = load_task_model(checkpoint, task)
    budget = round(0.02 * task_model.backbone.arena.numel)
    mask = select("random", SelectionRequest(candidates(task_model), budget, seed=3))
    ids = torch.randint(5, 40, (3, 7), generator=torch.Generator().manual_seed(1))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.tensor([0, 1, 1])}
    dense = gradients(task_model, mask, batch, sampled=False)
    assert dense.abs().max() > 1e-3
    torch.testing.assert_close(gradients(task_model, mask, batch, sampled=True), dense, rtol=1e-4, atol=1e-6)


def test_no_dense_gradient_of_a_sampled_weight_is_made(
    task_model: TaskModel, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sparsehub.training import sparse_model

    seen: list[tuple[int, ...]] = []
    kept = sparse_model.gradient_at
    monkeypatch.setattr(sparse_model, "gradient_at", lambda g, p: (seen.append(tuple(g.shape)), kept(g, p))[1])
    mask = {
        "encoder.layer.0.output.dense.weight": torch.tensor([3, 70, 1999]),
        "encoder.layer.0.output.dense.bias": torch.tensor([1]),
        "encoder.layer.1.output.dense.weight": torch.arange(0, 2048, 2),  # too many to pay
    }
    model = SparseModel(task_model, mask, sampled=True)
    model(**batch).loss.backward()
    assert sorted(seen) == [(32,), (32, 64)]


def test_afterwards_the_layers_are_as_they_were(task_model: TaskModel, batch: Batch) -> None:
    weight = "encoder.layer.0.attention.self.query.weight"
    model = SparseModel(task_model, {weight: torch.tensor([5])}, sampled=True)
    layer = task_model.backbone.module.encoder.layer[0].attention.self.query  # type: ignore[union-attr, index]
    assert "forward" in vars(layer)
    model.clear()
    assert "forward" not in vars(layer) and type(layer).forward is nn.Linear.forward


def test_the_first_layer_of_a_frozen_input_learns_too(batch: Batch) -> None:
    """Neither its input nor its bias has a gradient."""
    layer = nn.Linear(4, 3).requires_grad_(False)
    backbone = nn.Sequential(layer)
    anchor, found = nn.Parameter(torch.zeros(2)), []
    sampled_gradients.MOST, before = 0.5, sampled_gradients.MOST
    try:
        sampled_gradients.SampledLinears(
            backbone,
            dict(backbone.named_parameters()),
            {"0.weight": torch.tensor([1, 11])},
            {"0.weight": found.append},
            anchor,
        )
    finally:
        sampled_gradients.MOST = before
    x = torch.randn(5, 4)
    layer(x).square().sum().backward()
    dense = (2 * (x @ layer.weight.T + layer.bias)).T @ x
    torch.testing.assert_close(found[0], dense.flatten()[[1, 11]])
    assert anchor.grad is None


def test_a_weight_that_something_else_uses_keeps_its_dense_gradient(task_model: TaskModel, batch: Batch) -> None:
    mask = {"encoder.layer.0.output.dense.weight": torch.tensor([3, 70])}
    layer = task_model.backbone.module.encoder.layer[0].output.dense  # type: ignore[union-attr, index]
    model = SparseModel(task_model, mask, sampled=True)
    loss = model(**batch).loss
    loss.backward()
    assert model.values.grad is not None
    once = model.values.grad.clone()
    model.zero_grad()
    (model(**batch).loss + layer.weight.sum()).backward()  # a penalty that reads the weight itself
    torch.testing.assert_close(model.values.grad, once + 1)


def test_activations_that_are_computed_again_give_the_same_gradients(
    tiny_checkpoint: TinyCheckpoint, task_model: TaskModel, batch: Batch
) -> None:
    for module in task_model.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    mask = select("random", SelectionRequest(candidates(task_model), 400, seed=3))
    model = SparseModel(task_model, mask, sampled=True).train()
    model(**batch).loss.backward()
    assert model.values.grad is not None
    plain = model.values.grad.clone()
    model.zero_grad()
    assert checkpoint_activations(task_model.model)
    model(**batch).loss.backward()
    torch.testing.assert_close(model.values.grad, plain, rtol=1e-5, atol=1e-7)
