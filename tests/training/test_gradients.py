"""What the hooks gather, and what SAM ranks by, against autograd alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparsehub.backbone import Backbone, Checkpoint
from sparsehub.backbone.arena import build_arena
from sparsehub.package.task_model import TaskModel, load_task_model
from sparsehub.package.task_spec import PROBLEM_TYPES, TaskSpec
from sparsehub.selection import SelectionRequest, select
from sparsehub.training import gradients
from sparsehub.training.gradients import summed_gradients
from sparsehub.training.sparse_model import SparseModel
from sparsehub.training.trainable import candidates

Batch = Mapping[str, Tensor]
MakeMask = Callable[[TaskModel], dict[str, Tensor]]
Dense = Callable[[TaskModel, list[Batch]], dict[str, Tensor]]
Pieces = Callable[[SparseModel, Mapping[str, Tensor], Tensor], dict[str, Tensor]]


def test_gradients_at_the_positions_are_those_of_the_dense_model(
    random_mask: MakeMask, dense_gradients: Dense, pieces: Pieces, task_model: TaskModel, batch: Batch
) -> None:
    mask, wanted = random_mask(task_model), dense_gradients(task_model, [batch])
    model = SparseModel(task_model, mask)
    model(**batch).loss.backward()
    assert model.values.grad is not None
    for name, found in pieces(model, mask, model.values.grad).items():
        expected = wanted[name].flatten()[mask[name]]
        if "embeddings" in name:  # sparse gradients add up a token's uses in another order
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7, msg=name)
        else:
            assert torch.equal(found, expected), name


def test_the_dense_gradients_are_freed(random_mask: MakeMask, task_model: TaskModel, batch: Batch) -> None:
    model = SparseModel(task_model, random_mask(task_model))
    model(**batch).loss.backward()
    assert all(parameter.grad is None for parameter in task_model.backbone.module.parameters())
    assert all(parameter.grad is not None for parameter in model.head.values())


def test_gradients_add_up_over_backward_passes_until_they_are_cleared(
    random_mask: MakeMask, task_model: TaskModel, batch: Batch
) -> None:
    model = SparseModel(task_model, random_mask(task_model))
    model(**batch).loss.backward()
    assert model.values.grad is not None
    once = model.values.grad.clone()
    model(**batch).loss.backward()
    assert torch.equal(model.values.grad, once + once)
    model.zero_grad()
    model(**batch).loss.backward()
    assert torch.equal(model.values.grad, once)


def test_parts_of_a_batch_accumulate_to_the_whole(random_mask: MakeMask, task_model: TaskModel, batch: Batch) -> None:
    mask = random_mask(task_model)
    model = SparseModel(task_model, mask)
    model(**batch).loss.backward()
    assert model.values.grad is not None
    whole = model.values.grad.clone()
    model.zero_grad()
    for start in (0, 2, 4):
        part = {name: tensor[start : start + 2] for name, tensor in batch.items()}
        (model(**part).loss / 3).backward()
    torch.testing.assert_close(model.values.grad, whole, rtol=1e-4, atol=1e-6)


def test_sam_ranks_by_the_squared_gradient_of_the_whole_model(
    dense_gradients: Dense, task_model: TaskModel, checkpoint: Checkpoint, batch: Batch
) -> None:
    batches = [{n: t[:3] for n, t in batch.items()}, {n: t[3:] for n, t in batch.items()}]
    wanted = dense_gradients(task_model, batches)
    parameters = candidates(task_model)
    found = summed_gradients(task_model, batches, parameters, lambda: None)
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name] / 2, gradient, rtol=1e-4, atol=1e-7)
    assert not any(parameter.requires_grad for parameter in task_model.backbone.module.parameters())
    assert all(parameter.grad is None for parameter in task_model.model.parameters())
    mask = select("sam", SelectionRequest(parameters, 300, statistics={"gradient": found}))
    every = torch.cat([found[name].flatten() for name in parameters]).square()
    best = set(every.sort(descending=True, stable=True).indices[:300].tolist())
    starts = dict(zip(parameters, torch.tensor([0, *[p.numel() for p in parameters.values()]]).cumsum(0), strict=False))
    assert {int(starts[name]) + p for name, positions in mask.items() for p in positions.tolist()} == best


@pytest.mark.parametrize("tokens", [1, 20, 10_000])
@pytest.mark.parametrize("kind", ["text-classification", "token-classification"])
def test_a_batch_in_many_passes_has_the_gradient_of_its_mean_loss(
    dense_gradients: Dense, checkpoint: Checkpoint, tokens: int, kind: str, monkeypatch: Any
) -> None:
    """Also where the rows have different numbers of labels, or none."""
    monkeypatch.setitem(gradients.PASS_TOKENS, "cpu", tokens)
    task = TaskSpec(kind, ("a", "b", "c"), PROBLEM_TYPES[kind], ("text",), "label", 24, ("accuracy",))
    task_model = load_task_model(checkpoint, task)
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(5, 40, (6, 9), generator=generator)
    labels = torch.randint(3, (6,), generator=generator)
    if kind == "token-classification":
        labels = torch.randint(3, (6, 9), generator=generator)
        labels[0, 2:] = labels[1] = labels[5, :8] = -100
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    wanted = dense_gradients(task_model, [batch])
    found = summed_gradients(task_model, [batch], candidates(task_model), lambda: None)
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-7)


def test_half_precision_by_autocast_gives_float32_gradients(
    random_mask: MakeMask, dense_gradients: Dense, task_model: TaskModel, batch: Batch
) -> None:
    mask = random_mask(task_model)
    wanted = dense_gradients(task_model, [batch])
    model = SparseModel(task_model, mask)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(**batch).loss
    loss.backward()
    assert model.values.grad is not None and model.values.grad.dtype == torch.float32
    dense = torch.cat([wanted[name].flatten()[mask[name]] for name in sorted(mask)])
    assert torch.cosine_similarity(model.values.grad, dense, dim=0) > 0.98


class Tied(nn.Module):
    """Two names for one matrix, both used."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4, bias=False)
        self.second = nn.Linear(4, 4, bias=False)
        self.second.weight = self.first.weight
        self.config = None

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x))).square().mean()


def test_tied_parameters_are_one_candidate_with_the_gradient_of_all_their_uses() -> None:
    torch.manual_seed(0)
    module, x = Tied(), torch.randn(5, 4)
    module(x).backward()
    assert module.first.weight.grad is not None
    wanted = module.first.weight.grad.flatten()
    module.zero_grad()
    module.requires_grad_(False)
    arena = build_arena(dict(module.named_parameters(remove_duplicate=False)))
    checkpoint = Checkpoint("tied", "", Path(), {}, "", "float32")
    task_model = TaskModel(module, Backbone(module, arena, checkpoint, {}), ())
    assert list(candidates(task_model)) == ["first.weight"]
    positions = torch.tensor([0, 5, 15])
    model = SparseModel(task_model, {"first.weight": positions})
    model(x=x).backward()
    assert model.values.grad is not None
    torch.testing.assert_close(model.values.grad, wanted[positions])
    with torch.no_grad():
        model.values.fill_(0.5)
    model.write()
    assert module.second.weight.data_ptr() == module.first.weight.data_ptr()
