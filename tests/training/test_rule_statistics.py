"""What the rules rank by, and what they choose, against brute force in float64 on a small model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sparsehub.backbone import Checkpoint, open_checkpoint
from sparsehub.package.task_model import TaskModel, load_task_model
from sparsehub.package.task_spec import PROBLEM_TYPES, TaskSpec
from sparsehub.selection import SelectionRequest, select
from sparsehub.training import hessian
from sparsehub.training.fisher import batch_squares, row_squares
from sparsehub.training.gradients import clipped_gradients, same_randomness, summed_gradients
from sparsehub.training.hessian import hessian_diagonal
from sparsehub.training.trainable import candidates

Batch = Mapping[str, Tensor]
Gradients = dict[str, Tensor]


def nothing() -> None:
    """Nobody counts these batches."""


def load(checkpoint: Checkpoint, task: TaskSpec, dtype: torch.dtype = torch.float32) -> TaskModel:
    torch.manual_seed(0)
    loaded = load_task_model(checkpoint, task)
    loaded.model.to(dtype)
    return loaded


@pytest.fixture
def exact(checkpoint: Checkpoint, task: TaskSpec) -> TaskModel:
    """The same model in float64; its arena is left behind, its parameters are plain."""
    return load(checkpoint, task, torch.float64)


def gradient_of(model: TaskModel, loss: Tensor) -> Gradients:
    """Through autograd alone."""
    parameters = dict(model.backbone.module.named_parameters())
    wanted = {name: parameters[name] for name in candidates(model)}
    for parameter in wanted.values():
        parameter.requires_grad_(True)
    found = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True, retain_graph=True)
    return {n: g if g is not None else torch.zeros_like(wanted[n]) for n, g in zip(wanted, found, strict=True)}


def loss_of(model: TaskModel, batch: Batch) -> Tensor:
    for parameter in model.backbone.module.parameters():
        parameter.requires_grad_(True)
    return model.model(**batch).loss


def halves(batch: Batch) -> list[Batch]:
    return [{n: t[:3] for n, t in batch.items()}, {n: t[3:] for n, t in batch.items()}]


def rows(batch: Batch) -> list[Batch]:
    return [{n: t[i : i + 1] for n, t in batch.items()} for i in range(len(batch["labels"]))]


def brute_force(scores: Mapping[str, Tensor], budget: int) -> dict[str, list[int]]:
    """All scores in one list, sorted; equal ones in their order."""
    flat = torch.cat([score.flatten() for score in scores.values()])
    best = flat.sort(descending=True, stable=True).indices[:budget].sort().values.tolist()
    chosen: dict[str, list[int]] = {}
    start = 0
    for name, score in scores.items():
        mine = [place - start for place in best if start <= place < start + score.numel()]
        if mine:
            chosen[name] = mine
        start += score.numel()
    return chosen


BUDGETS = (1, 37, 300, 2000)


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("method", ["sam", "fisher", "snip"])
def test_what_is_chosen_is_what_brute_force_in_float64_chooses(
    task_model: TaskModel, exact: TaskModel, batch: Batch, method: str, budget: int
) -> None:
    batches = halves(batch)
    collect = {"sam": summed_gradients, "snip": summed_gradients, "fisher": row_squares}[method]
    names = list(candidates(task_model))
    statistic = {"sam": "gradient", "snip": "gradient", "fisher": "row_squares"}[method]
    found = {statistic: collect(task_model, batches, names, nothing)}
    mask = select(method, SelectionRequest(candidates(task_model), budget, statistics=found))

    if method == "fisher":
        squares = [gradient_of(exact, loss_of(exact, row)) for row in rows(batch)]
        scores = {name: torch.stack([g[name].square() for g in squares]).sum(0) for name in names}
    else:
        gradients = gradient_of(exact, torch.stack([loss_of(exact, part) for part in batches]).mean())
        weights = dict(exact.backbone.module.named_parameters())
        scores = {n: g.square() if method == "sam" else (g * weights[n]).abs() for n, g in gradients.items()}
    # float32 cannot tell scores apart that float64 tells apart by less than its noise: none may lie at the edge
    order = torch.cat([s.detach().flatten() for s in scores.values()]).sort(descending=True).values
    assert float(order[budget - 1] / order[budget]) > 1 + 1e-6
    assert {name: positions.tolist() for name, positions in mask.items()} == brute_force(scores, budget)


@pytest.mark.parametrize("method", ["sam", "fisher", "snip"])
def test_ties_are_broken_as_brute_force_breaks_them(task_model: TaskModel, batch: Batch, method: str) -> None:
    """Words that no row holds have gradients of exactly zero: the budget cuts through the middle of them."""
    parameters = candidates(task_model)
    collect = row_squares if method == "fisher" else summed_gradients
    found = collect(task_model, halves(batch), list(parameters), nothing)
    statistics = {"row_squares" if method == "fisher" else "gradient": found}
    raw = {n: found[n].double() for n in parameters}
    scores = {
        "sam": {n: g.square() for n, g in raw.items()},
        "fisher": raw,
        "snip": {n: (g * parameters[n].double()).abs() for n, g in raw.items()},
    }[method]
    every = torch.cat([score.flatten() for score in scores.values()])
    zeros, total = int((every == 0).sum()), every.numel()
    assert zeros > 500
    for budget in (total - zeros + 1, total - zeros // 2, total - 1):
        mask = select(method, SelectionRequest(parameters, budget, statistics=statistics))
        assert {name: positions.tolist() for name, positions in mask.items()} == brute_force(scores, budget)


def test_two_units_with_the_same_weights_tie_and_the_first_is_chosen(task_model: TaskModel, batch: Batch) -> None:
    """A hidden unit and its copy have the same gradient, bit for bit."""
    layer = task_model.backbone.module.encoder.layer[0]  # type: ignore[union-attr, index]
    with torch.no_grad():
        layer.intermediate.dense.weight[5] = layer.intermediate.dense.weight[4]
        layer.intermediate.dense.bias[5] = layer.intermediate.dense.bias[4]
        layer.output.dense.weight[:, 5] = layer.output.dense.weight[:, 4]
    name = "encoder.layer.0.intermediate.dense.bias"
    alone = {name: candidates(task_model)[name]}
    found = summed_gradients(task_model, [batch], [name], nothing)
    assert found[name][4] == found[name][5]
    better = int((found[name].square() > found[name][4].square()).sum())
    mask = select("sam", SelectionRequest(alone, better + 1, statistics={"gradient": found}))
    assert 4 in mask[name].tolist() and 5 not in mask[name].tolist()


def test_row_squares_are_those_of_each_row_alone(task_model: TaskModel, exact: TaskModel, batch: Batch) -> None:
    found = row_squares(task_model, halves(batch), list(candidates(task_model)), nothing)
    squares = [gradient_of(exact, loss_of(exact, row)) for row in rows(batch)]
    for name, total in found.items():
        wanted = torch.stack([g[name].square() for g in squares]).sum(0)
        torch.testing.assert_close(total.double(), wanted, rtol=1e-3, atol=1e-9, msg=name)
    assert all(parameter.grad is None for parameter in task_model.model.parameters())
    assert not any(module.sparse for module in task_model.backbone.module.modules() if hasattr(module, "sparse"))


@pytest.mark.parametrize("kind", ["token-classification", "multiple-choice"])
def test_row_squares_of_rows_with_many_labels_or_many_sequences(checkpoint: Checkpoint, kind: str) -> None:
    task = TaskSpec(
        kind,
        ("a", "b"),
        PROBLEM_TYPES[kind],
        ("text",),
        "label",
        24,
        ("accuracy",),
        ("a", "b") if kind == "multiple-choice" else (),
    )
    shape = (3, 2, 7) if kind == "multiple-choice" else (3, 7)
    generator = torch.Generator().manual_seed(3)
    ids, seen = torch.randint(5, 40, shape, generator=generator), torch.ones(shape, dtype=torch.long)
    seen[0, ..., 4:] = 0
    labels = torch.tensor([0, 1, 1])
    if kind == "token-classification":
        labels = torch.randint(2, (3, 7), generator=generator)
        labels[0, 4:] = labels[2] = -100  # the last row has no label at all, so no gradient
    batch = {"input_ids": ids, "attention_mask": seen, "labels": labels}
    model, precise = load(checkpoint, task), load(checkpoint, task, torch.float64)
    found = row_squares(model, [batch], list(candidates(model)), nothing)
    told = rows(batch)[: 2 if kind == "token-classification" else 3]
    squares = [gradient_of(precise, loss_of(precise, row)) for row in told]
    for name, total in found.items():
        wanted = torch.stack([g[name].square() for g in squares]).sum(0)
        torch.testing.assert_close(total.double(), wanted, rtol=1e-3, atol=1e-9, msg=name)


@pytest.fixture
def still(tiny_checkpoint: Callable[[str], Path], task: TaskSpec) -> TaskModel:
    """A model without dropout, so that training mode is exact."""
    checkpoint = open_checkpoint(str(tiny_checkpoint("bert")))
    torch.manual_seed(0)
    loaded = load_task_model(checkpoint, task)
    for module in loaded.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return loaded


def test_batch_squares_are_those_of_each_batch(still: TaskModel, exact: TaskModel, batch: Batch) -> None:
    found = batch_squares(still, halves(batch), list(candidates(still)), nothing)
    squares = [gradient_of(exact, loss_of(exact, part)) for part in halves(batch)]
    for name, total in found.items():
        wanted = torch.stack([g[name].square() for g in squares]).sum(0)
        torch.testing.assert_close(total.double(), wanted, rtol=1e-3, atol=1e-9, msg=name)
    assert not still.model.training


@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_clipped_gradients_are_cut_by_the_norm_of_backbone_and_head(
    still: TaskModel, exact: TaskModel, batch: Batch, scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sparsehub.training.gradients.CLIP", scale)
    found = clipped_gradients(still, halves(batch), list(candidates(still)), nothing)
    wanted = {name: torch.zeros_like(tensor, dtype=torch.float64) for name, tensor in found.items()}
    for part in halves(batch):
        loss = loss_of(exact, part)
        gradients = gradient_of(exact, loss)
        head = torch.autograd.grad(loss, [dict(exact.model.named_parameters())[name] for name in exact.head])
        norm = math.sqrt(sum(float(g.square().sum()) for g in (*gradients.values(), *head)))
        for name, gradient in gradients.items():
            wanted[name] += gradient * min(1.0, scale / norm)
    for name, total in found.items():
        torch.testing.assert_close(total.double(), wanted[name], rtol=1e-3, atol=1e-6 * scale, msg=name)


def test_both_passes_of_a_clipped_batch_draw_the_same_dropout(task_model: TaskModel, batch: Batch) -> None:
    """With a norm far below the cut the sum is the very gradient of one forward pass with dropout."""
    torch.manual_seed(5)
    found = clipped_gradients(task_model, [batch], list(candidates(task_model)), nothing)
    torch.manual_seed(5)
    with same_randomness():
        first = torch.rand(3)
    assert torch.equal(first, torch.rand(3))
    torch.manual_seed(5)
    task_model.model.train()
    gradients = gradient_of(task_model, loss_of(task_model, batch))
    ratio = {n: float((found[n] / g)[g.abs() > 1e-3].median()) for n, g in gradients.items() if (g.abs() > 1e-3).any()}
    assert len(ratio) > 20 and max(ratio.values()) - min(ratio.values()) < 1e-3


def exact_diagonal(model: TaskModel, batch: Batch, name: str) -> Tensor:
    """The Hessian's diagonal, row by row through autograd, in float64."""
    parameter = dict(model.backbone.module.named_parameters())[name]
    gradient = torch.autograd.grad(loss_of(model, batch), parameter, create_graph=True)[0].flatten()
    rows = [torch.autograd.grad(g, parameter, retain_graph=True)[0].flatten()[i] for i, g in enumerate(gradient)]
    return torch.stack(rows)


@pytest.mark.parametrize("name", ["embeddings.LayerNorm.bias", "encoder.layer.1.attention.self.query.bias"])
def test_probes_find_the_hessians_diagonal(
    task_model: TaskModel, exact: TaskModel, batch: Batch, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(hessian.PASS_TOKENS, "cpu", 10_000)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        wanted = exact_diagonal(exact, batch, name)
    found = hessian_diagonal(task_model, [batch], [name], nothing, probes=300, seed=1)[name]
    assert found.dtype == torch.bfloat16
    error = (found.double() - wanted).norm() / wanted.norm()
    fewer = hessian_diagonal(task_model, [batch], [name], nothing, probes=3, seed=1)[name]
    assert error < 0.4 and error < (fewer.double() - wanted).norm() / wanted.norm()


def test_other_seeds_are_other_probes_and_groups_are_probed_apart(
    task_model: TaskModel, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["encoder.layer.0.output.dense.bias", "encoder.layer.1.output.dense.bias"]
    found = [hessian_diagonal(task_model, [batch], names, nothing, probes=2, seed=seed) for seed in (1, 1, 2)]
    assert torch.equal(found[0][names[0]], found[1][names[0]])
    assert not torch.equal(found[0][names[0]], found[2][names[0]])
    monkeypatch.setattr(hessian, "GROUP_BYTES", 4)
    counted: list[int] = []
    apart = hessian_diagonal(task_model, halves(batch), names, lambda: counted.append(1), probes=2, seed=1)
    assert list(apart) == names and len(counted) == 2
    assert not any(parameter.requires_grad for parameter in task_model.backbone.module.parameters())


def test_a_parameter_that_the_loss_does_not_reach_has_no_curvature(task_model: TaskModel, batch: Batch) -> None:
    never: Sequence[str] = ["pooler.dense.bias"]
    task_model.model.bert.pooler.register_forward_hook(lambda *_: torch.zeros(6, 32))  # type: ignore[union-attr]
    found: Any = hessian_diagonal(task_model, [batch], never, nothing, probes=1, seed=0)
    assert not found["pooler.dense.bias"].any()
