"""The sparse optimiser against the plain one: dense gradients, masked, with decay on the change."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sparsehub.backbone import Backbone, Checkpoint, load_backbone
from sparsehub.backbone.arena import build_arena
from sparsehub.errors import DataError
from sparsehub.package.task_model import TaskModel, load_task_model
from sparsehub.package.task_spec import TaskSpec
from sparsehub.patch import apply_patch, make_patch
from sparsehub.training.sparse_model import SparseModel
from sparsehub.training.trainable import candidates

Batch = Mapping[str, Tensor]
MakeMask = Callable[[TaskModel], dict[str, Tensor]]
Dense = Callable[[TaskModel, list[Batch]], dict[str, Tensor]]
Pieces = Callable[[SparseModel, Mapping[str, Tensor], Tensor], dict[str, Tensor]]
TinyCheckpoint = Callable[[str], Path]


def test_the_values_begin_at_no_change(random_mask: MakeMask, task_model: TaskModel) -> None:
    before = task_model.backbone.arena.digest()
    mask = random_mask(task_model)
    model = SparseModel(task_model, mask)
    assert model.values.dtype == torch.float32
    assert model.values.numel() == sum(map(len, mask.values()))
    assert not model.values.any()
    model.write()
    assert task_model.backbone.arena.digest() == before


class PlainAdamW:
    """Decoupled weight decay and Adam as in Loshchilov and Hutter, on one float64 vector."""

    def __init__(self, values: Tensor, lr: float, decay: float):
        self.values, self.lr, self.decay, self.steps = values.double(), lr, decay, 0
        self.first, self.second = torch.zeros_like(self.values), torch.zeros_like(self.values)

    def step(self, gradient: Tensor) -> Tensor:
        self.steps += 1
        self.first = 0.9 * self.first + 0.1 * gradient
        self.second = 0.999 * self.second + 0.001 * gradient**2
        first, second = self.first / (1 - 0.9**self.steps), self.second / (1 - 0.999**self.steps)
        self.values = self.values * (1 - self.lr * self.decay) - self.lr * first / (second.sqrt() + 1e-8)
        return self.values


def in_float64(task_model: TaskModel) -> TaskModel:
    """In float32 the noise of a gradient that should be zero (a key's bias) is what Adam steps along."""
    module = task_model.backbone.module
    task_model.model.double().eval()
    arena = build_arena(dict(module.named_parameters()))
    backbone = Backbone(module, arena, task_model.backbone.checkpoint, {})
    return TaskModel(task_model.model, backbone, task_model.head)


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_steps_are_those_of_a_dense_masked_adamw(
    task: TaskSpec,
    random_mask: MakeMask,
    pieces: Pieces,
    task_model: TaskModel,
    checkpoint: Checkpoint,
    batch: Batch,
    decay: float,
) -> None:
    torch.manual_seed(0)
    dense = in_float64(load_task_model(checkpoint, task))
    parameters = {n: p.requires_grad_(True) for n, p in dense.model.named_parameters()}
    mask = {f"bert.{name}": positions for name, positions in random_mask(task_model).items()}
    base = {name: parameters[name].detach().flatten()[positions].clone() for name, positions in mask.items()}
    plain = {name: PlainAdamW(torch.zeros(len(p)), 1e-2, decay) for name, p in mask.items()}
    plain |= {name: PlainAdamW(parameters[name].detach().flatten(), 3e-3, decay) for name in dense.head}

    model = SparseModel(in_float64(task_model), random_mask(task_model))
    optimizer = model.optimizer(learning_rate=1e-2, head_learning_rate=3e-3, weight_decay=decay)
    for _ in range(8):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
        gradients = torch.autograd.grad(dense.model(**batch).loss, [parameters[name] for name in plain])
        for name, gradient in zip(plain, gradients, strict=True):
            chosen = mask.get(name, torch.arange(gradient.numel()))
            values = plain[name].step(gradient.flatten()[chosen])
            parameters[name].data.view(-1)[chosen] = values + base.get(name, 0.0)
    for name, found in pieces(model, random_mask(task_model), model.values.detach()).items():
        torch.testing.assert_close(found.double(), plain[f"bert.{name}"].values, rtol=1e-4, atol=1e-7)
    for name, parameter in model.head.items():
        torch.testing.assert_close(parameter.detach().flatten(), plain[name].values, rtol=1e-6, atol=1e-8)


def test_decay_pulls_the_values_to_zero_and_leaves_the_weights(random_mask: MakeMask, task_model: TaskModel) -> None:
    mask = random_mask(task_model)
    model = SparseModel(task_model, mask)
    before = {name: task_model.backbone.arena.view(name).clone() for name in mask}
    with torch.no_grad():
        model.values.fill_(1.0)
    optimizer = model.optimizer(learning_rate=0.1, head_learning_rate=0.0, weight_decay=0.5)
    model.values.grad = torch.zeros_like(model.values)
    for _ in range(200):
        optimizer.step()
    assert model.values.abs().max() < 1e-3
    for name, weight in before.items():
        torch.testing.assert_close(task_model.backbone.arena.view(name), weight, rtol=0, atol=1e-3)


def test_entries_that_were_not_chosen_never_move(random_mask: MakeMask, task_model: TaskModel, batch: Batch) -> None:
    mask = random_mask(task_model)
    model = SparseModel(task_model, mask)
    arena = task_model.backbone.arena
    before = {name: arena.view(name).clone() for name in arena.slots}
    optimizer = model.optimizer(learning_rate=0.1, head_learning_rate=0.1, weight_decay=0.3)
    for _ in range(3):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    for name, weight in before.items():
        moved = (arena.view(name).view(-1).view(torch.int32) != weight.view(-1).view(torch.int32)).nonzero().flatten()
        assert set(moved.tolist()) <= set(mask[name].tolist() if name in mask else [])
    assert any(not torch.equal(arena.view(name), before[name]) for name in mask)


def test_the_arena_holds_base_plus_values_after_each_step(
    random_mask: MakeMask, pieces: Pieces, task_model: TaskModel, batch: Batch
) -> None:
    mask = random_mask(task_model)
    model = SparseModel(task_model, mask)
    arena = task_model.backbone.arena
    base = {name: arena.view(name).view(-1)[positions].clone() for name, positions in mask.items()}
    optimizer = model.optimizer(learning_rate=0.05, head_learning_rate=0.05, weight_decay=0.0)
    model(**batch).loss.backward()
    optimizer.step()
    for name, values in pieces(model, mask, model.values.detach()).items():
        assert torch.equal(arena.view(name).view(-1)[mask[name]], base[name] + values)


def test_clearing_puts_every_bit_back(random_mask: MakeMask, task_model: TaskModel, batch: Batch) -> None:
    before = task_model.backbone.arena.digest()
    model = SparseModel(task_model, random_mask(task_model))
    optimizer = model.optimizer(learning_rate=0.7, head_learning_rate=0.1, weight_decay=0.1)
    for _ in range(3):
        model(**batch).loss.backward()
        optimizer.step()
    assert task_model.backbone.arena.digest() != before
    model.clear()
    assert task_model.backbone.arena.digest() == before
    assert not model.values.any()


def test_the_delta_makes_the_same_weights_again(random_mask: MakeMask, task_model: TaskModel, batch: Batch) -> None:
    arena = task_model.backbone.arena
    model = SparseModel(task_model, random_mask(task_model))
    optimizer = model.optimizer(learning_rate=0.05, head_learning_rate=0.05, weight_decay=0.0)
    model(**batch).loss.backward()
    optimizer.step()
    trained, delta = arena.digest(), model.delta("float32")
    model.clear()
    apply_patch(arena, make_patch(task_model.backbone, delta))
    assert arena.digest() == trained


def test_the_delta_leaves_out_what_is_zero_once_stored(task_model: TaskModel) -> None:
    mask = {"encoder.layer.0.output.dense.bias": torch.tensor([1, 3, 5, 7]), "pooler.dense.bias": torch.tensor([2])}
    model = SparseModel(task_model, mask)
    with torch.no_grad():
        model.values.copy_(torch.tensor([0.0, 1e-12, 1e-3, -2.0, 1e-12]))
    found = {dtype: model.delta(dtype) for dtype in ("float32", "bfloat16", "float16", "int8")}
    assert {dtype: delta.nnz for dtype, delta in found.items()} == {
        "float32": 4,
        "bfloat16": 4,
        "float16": 2,
        "int8": 4,
    }
    assert list(found["float16"].parameters) == ["encoder.layer.0.output.dense.bias"]
    assert found["float16"].parameters["encoder.layer.0.output.dense.bias"].indices.tolist() == [5, 7]
    assert (found["float16"].value_kind, found["float16"].value_dtype) == ("add", "float16")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_run_that_diverged_has_no_delta(task_model: TaskModel, value: float) -> None:
    model = SparseModel(task_model, {"pooler.dense.bias": torch.tensor([0, 1])})
    with torch.no_grad():
        model.values[1] = value
    with pytest.raises(DataError, match="training diverged"):
        model.delta("float32")


def test_a_checkpoint_holds_the_values_and_the_head_alone(random_mask: MakeMask, task_model: TaskModel) -> None:
    model = SparseModel(task_model, random_mask(task_model))
    state = model.state_dict()
    assert set(state) == {"values", "classifier.weight", "classifier.bias"}
    assert state["values"].shape == model.values.shape
    state["values"].fill_(7)
    assert not model.values.any()  # a copy


def test_loading_a_checkpoint_brings_back_the_weights(
    random_mask: MakeMask, task_model: TaskModel, batch: Batch
) -> None:
    model = SparseModel(task_model, random_mask(task_model))
    optimizer = model.optimizer(learning_rate=0.05, head_learning_rate=0.05, weight_decay=0.0)
    model(**batch).loss.backward()
    optimizer.step()
    state, trained = model.state_dict(), task_model.backbone.arena.digest()
    model.clear()
    for parameter in model.head.values():
        nn.init.zeros_(parameter)
    model.load_state_dict(state)
    assert task_model.backbone.arena.digest() == trained
    assert all(torch.equal(parameter, state[name]) for name, parameter in model.head.items())


def test_the_trainable_parameters_of_the_optimizer_are_values_and_head(
    random_mask: MakeMask, task_model: TaskModel
) -> None:
    model = SparseModel(task_model, random_mask(task_model))
    optimizer = model.optimizer(learning_rate=1e-2, head_learning_rate=1e-3, weight_decay=0.0)
    values, head = optimizer.param_groups
    assert (values["lr"], [p is model.values for p in values["params"]]) == (1e-2, [True])
    assert head["lr"] == 1e-3
    assert {id(p) for p in head["params"]} == {id(p) for p in model.head.values()}


def test_an_empty_mask_trains_the_head_alone(task_model: TaskModel, batch: Batch) -> None:
    before = task_model.backbone.arena.digest()
    model = SparseModel(task_model, {})
    head = {name: parameter.detach().clone() for name, parameter in model.head.items()}
    optimizer = model.optimizer(learning_rate=0.1, head_learning_rate=0.1, weight_decay=0.1)
    model(**batch).loss.backward()
    optimizer.step()
    assert task_model.backbone.arena.digest() == before
    assert all(not torch.equal(parameter, head[name]) for name, parameter in model.head.items())


def test_candidates_are_the_arena_and_not_the_head(task_model: TaskModel, tiny_checkpoint: TinyCheckpoint) -> None:
    found = candidates(task_model)
    assert sum(tensor.numel() for tensor in found.values()) == task_model.backbone.arena.numel
    assert set(found) == set(load_backbone(str(tiny_checkpoint("bert"))).arena.slots)


def test_moving_the_wrapper_leaves_the_weights_in_the_arena(random_mask: MakeMask, task_model: TaskModel) -> None:
    """accelerate moves a model to `cpu:0`, which copies what lies on `cpu`."""
    model = SparseModel(task_model, random_mask(task_model)).to("cpu:0")
    with torch.no_grad():
        model.values.fill_(1.0)
    model.write()
    for name, parameter in task_model.backbone.module.named_parameters():
        assert parameter.data_ptr() == task_model.backbone.arena.view(name).data_ptr()
