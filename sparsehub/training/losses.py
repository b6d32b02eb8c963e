"""The loss of each row by itself, and how steep it is, for a model that was just trained."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from sparsehub.backbone.tokenizer import load_tokenizer
from sparsehub.package.task_spec import MULTI_LABEL, REGRESSION, TEXT_GENERATION, TaskSpec
from sparsehub.patch import make_patch, patched
from sparsehub.training.batches import Collator
from sparsehub.training.data import Split
from sparsehub.training.fitting import Fitted
from sparsehub.training.gradients import candidates_named, each_gradient, on_device, passes, requires_grad
from sparsehub.training.metrics import IGNORED
from sparsehub.training.sparse_model import gradient_at

ROWS = 32  # of one forward pass


@contextlib.contextmanager
def trained(fitted: Fitted) -> Iterator[None]:
    """While the block runs, the backbone carries what was trained; afterwards it is as it was loaded."""
    arena = fitted.task_model.backbone.arena
    changes = fitted.delta is not None and fitted.delta.nnz > 0
    patch = make_patch(fitted.task_model.backbone, fitted.delta) if changes and fitted.delta else None
    fitted.task_model.model.eval()
    with patched(arena, patch) if patch is not None else contextlib.nullcontext():
        yield


@torch.no_grad()
def row_losses(fitted: Fitted, split: Split) -> Tensor:
    """[rows] float32: the loss of each row under the weights as they are now."""
    task, found = fitted.data.task, []
    for batch in _batches(fitted, split, ROWS):
        inputs = on_device(batch, fitted.task_model)
        labels = inputs.pop("labels")
        found.append(_losses(task, fitted.task_model.model(**inputs).logits.float(), labels).cpu())
    return torch.cat(found)


def _losses(task: TaskSpec, logits: Tensor, labels: Tensor) -> Tensor:
    if task.kind == REGRESSION:
        return (logits.view(-1) - labels.view(-1)).square()
    if task.kind == MULTI_LABEL:
        return torch.nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(1)
    if task.kind == TEXT_GENERATION:  # every token is judged at the one before it
        logits, labels = logits[:, :-1], labels[:, 1:]
    if labels.ndim > 1:  # the mean over a row's labelled tokens, as the model's own loss has it
        each = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none", ignore_index=IGNORED)
        return each.sum(1) / (labels != IGNORED).sum(1).clamp(min=1)
    return torch.nn.functional.cross_entropy(logits, labels, reduction="none")


def lipschitz(fitted: Fitted, split: Split) -> float:
    """The largest norm that the gradient of a row's loss has over the entries that were trained."""
    delta = fitted.delta
    if delta is None:
        return 0.0
    wanted = candidates_named(fitted.task_model, delta.parameters)
    positions = {name: delta.parameters[name].indices.to(fitted.task_model.backbone.device) for name in wanted}
    squares: list[float] = []
    norms = [0.0]

    def take(name: str, gradient: Tensor) -> None:
        squares.append(float(gradient_at(gradient, positions[name]).double().square().sum()))

    with requires_grad(wanted.values(), True), each_gradient(wanted, take):
        for batch in _batches(fitted, split, ROWS):
            for row, _ in passes(on_device(batch, fitted.task_model), tokens=0):
                squares.clear()
                fitted.task_model.model(**row).loss.backward()
                norms.append(math.sqrt(sum(squares)))
    fitted.task_model.model.zero_grad()  # the head's
    return max(norms)


def _batches(fitted: Fitted, split: Split, rows: int) -> Iterator[dict[str, Tensor]]:
    collator = Collator(fitted.data.task, load_tokenizer(fitted.task_model.backbone.checkpoint))
    for start in range(0, len(split.rows), rows):
        stop = start + rows
        yield collator(list(zip(split.rows[start:stop], split.targets[start:stop], strict=True)))
