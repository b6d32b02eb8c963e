"""Heads without a backbone: what fits, what they own, and many of them at once."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sparsehub.backbone import Backbone, load_backbone
from sparsehub.backbone.tokenizer import load_tokenizer
from sparsehub.errors import FormatError
from sparsehub.package.heads import HeadModel, build_head, run_heads
from sparsehub.package.task_model import load_task_model
from sparsehub.package.task_spec import TaskSpec
from tests.support.task_models import PAIRS, batch_of

MakeTask = Callable[..., TaskSpec]
TaskRows = dict[str, list[dict[str, Any]]]
COUNTS = (1, 2, 1)


def random_head(backbone: Backbone, task: TaskSpec, seed: int) -> HeadModel:
    """With other weights for every seed."""
    made = load_task_model(backbone.checkpoint, task)
    shapes = {name: parameter.shape for name, parameter in made.model.named_parameters() if name in made.head}
    numbers = torch.Generator().manual_seed(seed)
    tensors = {name: torch.randn(shape, generator=numbers) for name, shape in shapes.items()}
    return build_head(backbone, task, tensors, load_tokenizer(backbone.checkpoint).pad_token_id)


def part_of(tensors: Mapping[str, Any], start: int, stop: int) -> dict[str, Tensor]:
    return {name: tensor[start:stop] for name, tensor in tensors.items() if isinstance(tensor, Tensor)}


@pytest.mark.parametrize(("family", "kind"), PAIRS)
def test_heads_that_run_together_answer_as_each_alone(
    tiny_checkpoint: Callable[[str], Path], make_task: MakeTask, task_rows: TaskRows, family: str, kind: str
) -> None:
    backbone, task = load_backbone(str(tiny_checkpoint(family))), make_task(kind)
    heads = [random_head(backbone, task, seed) for seed in range(len(COUNTS))]
    together = len({head.alike for head in heads}) == 1
    assert together == (family != "modernbert")  # its heads have a LayerNorm too
    if not together:
        return
    batch = batch_of(backbone.checkpoint, task, task_rows[kind])
    choices = batch["input_ids"].shape[1] if kind == "multiple-choice" else 1
    counts = [count * choices for count in COUNTS]
    with torch.no_grad():
        outputs = backbone.module(**{name: tensor.view(-1, tensor.shape[-1]) for name, tensor in batch.items()})
        found = run_heads(heads, counts, batch, outputs)
        alone, row = [], 0
        for head, count in zip(heads, COUNTS, strict=True):
            its = type(outputs)(**part_of(outputs, row * choices, (row + count) * choices))
            alone.append(head(part_of(batch, row, row + count), its))
            row += count
    assert torch.equal(found, torch.cat(alone))
    assert not any("forward" in linear.__dict__ for head in heads for linear in head.linears)


GOOD_HEAD = {"classifier.weight": torch.ones(3, 32), "classifier.bias": torch.zeros(3)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classifier.weight": torch.ones(4, 32)}, r"found:.*size mismatch for classifier\.weight"),
        ({"classifier.bias": None}, r"Missing key.*classifier\.bias"),
        ({"classifier.scale": torch.ones(3)}, r"Unexpected key.*classifier\.scale"),
        ({"bert.encoder.layer.0.output.dense.bias": torch.ones(32)}, "holds parameters from inside the backbone"),
        ({"bert.pooler.dense.weight": torch.ones(32, 32)}, r"Missing key.*bert\.pooler\.dense\.bias"),
        ({"bert.pooler.dense.kernel": torch.ones(32, 32)}, "does not fit"),
    ],
)
def test_a_head_that_does_not_fit_is_refused(
    bert: Backbone, make_task: MakeTask, change: dict[str, Tensor | None], message: str
) -> None:
    head = {name: tensor for name, tensor in {**GOOD_HEAD, **change}.items() if tensor is not None}
    with pytest.raises(FormatError, match=message):
        build_head(bert, make_task("text-classification"), head, 0)


def test_a_head_with_a_pooler_of_its_own_does_not_run_with_one_that_has_none(
    bert: Backbone, make_task: MakeTask
) -> None:
    pooler = {"bert.pooler.dense.weight": torch.ones(32, 32), "bert.pooler.dense.bias": torch.ones(32)}
    task = make_task("text-classification")
    plain, again, own = (build_head(bert, task, head, 0) for head in (GOOD_HEAD, GOOD_HEAD, {**GOOD_HEAD, **pooler}))
    assert plain.alike == again.alike != own.alike


def test_a_pooler_for_a_model_that_has_none_is_refused(bert: Backbone, make_task: MakeTask) -> None:
    head = {**GOOD_HEAD, "bert.pooler.dense.weight": torch.ones(32, 32), "bert.pooler.dense.bias": torch.ones(32)}
    with pytest.raises(FormatError, match="does not fit"):
        build_head(bert, make_task("token-classification"), head, 0)


def test_an_empty_head_is_refused(bert: Backbone, make_task: MakeTask) -> None:
    with pytest.raises(FormatError, match="Missing key"):
        build_head(bert, make_task("text-classification"), {}, 0)


def test_a_head_counts_its_own_bytes_and_holds_no_backbone(bert: Backbone, make_task: MakeTask) -> None:
    head = build_head(bert, make_task("text-classification"), GOOD_HEAD, 0)
    assert head.nbytes == (3 * 32 + 3) * 4


def test_a_head_keeps_its_own_copy_of_its_tensors(bert: Backbone, make_task: MakeTask, task_rows: TaskRows) -> None:
    task, tensors = make_task("text-classification"), copy.deepcopy(GOOD_HEAD)
    batch = batch_of(bert.checkpoint, task, task_rows[task.kind])
    head = build_head(bert, task, tensors, 0)
    with torch.no_grad():
        outputs = bert.module(**batch)
        before = head(batch, outputs)
        tensors["classifier.weight"].zero_()
        assert torch.equal(head(batch, outputs), before)


def test_a_failing_head_lets_go_of_the_outputs(bert: Backbone, make_task: MakeTask) -> None:
    head = build_head(bert, make_task("text-classification"), GOOD_HEAD, 0)
    with pytest.raises(IndexError):
        head({"input_ids": torch.ones(1, 2, dtype=torch.long)}, ())
    assert head._stand_in.outputs is None
