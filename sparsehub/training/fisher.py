"""Squared gradients of the calibration rows, of each row or of each batch; none is kept once it is squared."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from sparsehub.errors import UsageError
from sparsehub.package.embedding_model import EmbeddingModel
from sparsehub.package.task_model import TaskModel
from sparsehub.training.gradients import (
    Batch,
    OnBatch,
    candidates_named,
    each_gradient,
    head_of,
    on_device,
    passes,
    requires_grad,
    with_dropout,
)


def row_squares(
    task_model: TaskModel, batches: Iterable[Batch], names: Iterable[str], on_batch: OnBatch
) -> dict[str, Tensor]:
    """By parameter name, the squared gradient of each row's own loss, summed over the rows. Dropout is off."""
    if isinstance(task_model.model, EmbeddingModel):
        problem = "this rule looks at single rows, and an embedding's loss is that of a batch"
        raise UsageError(problem, fix="choose another --method, such as sam or child-tuning")
    wanted = candidates_named(task_model, names)
    sums = {name: torch.zeros_like(parameter) for name, parameter in wanted.items()}
    task_model.model.eval()
    head = head_of(task_model).values()
    with requires_grad(wanted.values(), True), requires_grad(head, False), _sparse_embeddings(task_model):
        for batch in batches:
            with each_gradient(wanted, _square_adder(sums)):
                for row, _ in passes(on_device(batch, task_model), tokens=0):
                    task_model.model(**_without_padding(row)).loss.backward()
            on_batch()
    return sums


def batch_squares(
    task_model: TaskModel, batches: Iterable[Batch], names: Iterable[str], on_batch: OnBatch
) -> dict[str, Tensor]:
    """By parameter name, the squared gradient of each batch's mean loss, summed over the batches. Dropout is on."""
    wanted = candidates_named(task_model, names)
    sums = {name: torch.zeros_like(parameter) for name, parameter in wanted.items()}
    head = head_of(task_model).values()
    with requires_grad(wanted.values(), True), requires_grad(head, False), with_dropout(task_model):
        for batch in batches:
            with each_gradient(wanted, _square_adder(sums)):
                task_model.model(**on_device(batch, task_model)).loss.backward()
            on_batch()
    return sums


def _square_adder(sums: Mapping[str, Tensor]) -> Callable[[str, Tensor], None]:
    def add(name: str, gradient: Tensor) -> None:
        if gradient.is_sparse:
            used = gradient.coalesce()
            sums[name].index_add_(0, used.indices()[0], used.values().square())
        else:
            sums[name].addcmul_(gradient, gradient)

    return add


@contextlib.contextmanager
def _sparse_embeddings(task_model: TaskModel) -> Iterator[None]:
    """Gradients of the words that a row uses, not of the whole vocabulary: a pass is as cheap as its row."""
    embeddings = [m for m in task_model.backbone.module.modules() if isinstance(m, nn.Embedding)]
    before = [module.sparse for module in embeddings]
    for module in embeddings:
        module.sparse = True
    try:
        yield
    finally:
        for module, was in zip(embeddings, before, strict=True):
            module.sparse = was


def _without_padding(row: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A batch of one row, cut behind its last token; labels per token are cut with it, those of a row (floats) never,
    however many they are. Packed rows are full."""
    if "attention_mask" not in row:
        return dict(row)
    used = row["attention_mask"].flatten(0, -2).any(0).nonzero()
    length, stop = row["attention_mask"].shape[-1], int(used.max()) + 1
    by_token = {name for name, t in row.items() if t.ndim > 1 and t.shape[-1] == length and not t.is_floating_point()}
    return {name: t[..., :stop] if name in by_token else t for name, t in row.items()}
