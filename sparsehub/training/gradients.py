"""The gradient of the mean loss over the calibration batches, for the selection rules that ask for it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from sparsehub.package.model import TaskModel
from sparsehub.training.metrics import IGNORED

# Tokens of one pass. Gradients of all candidates lie in memory, and the activations of a pass come on top: on a CPU a
# few hundred tokens keep the cores busy as well as many.
PASS_TOKENS = {"cpu": 256, "cuda": 4096}


def summed_gradients(
    task_model: TaskModel, batches: Iterable[Mapping[str, Tensor]], names: Iterable[str], on_batch: Callable[[], None]
) -> dict[str, Tensor]:
    """By parameter name, the gradients of each batch's mean loss, summed over the batches.

    Dropout is off and the head is the fresh one. Parameters that the loss does not reach have a gradient of zero. A
    batch is cut into passes of about `PASS_TOKENS` tokens, which changes nothing but the memory.
    """
    parameters = dict(task_model.backbone.module.named_parameters(remove_duplicate=False))
    wanted = {name: parameters[name] for name in names}
    head = [parameter for name, parameter in task_model.model.named_parameters() if name in set(task_model.head)]
    task_model.model.eval()
    with _requires_grad(wanted.values(), True), _requires_grad(head, False):
        for batch in batches:
            inputs = {name: tensor.to(task_model.backbone.device) for name, tensor in batch.items()}
            for part, share in _passes(inputs, PASS_TOKENS[task_model.backbone.device.type]):
                (task_model.model(**part).loss * share).backward()
            on_batch()
    gradients = {n: p.grad if p.grad is not None else torch.zeros_like(p) for n, p in wanted.items()}
    for parameter in wanted.values():
        parameter.grad = None
    return gradients


def _passes(batch: Mapping[str, Tensor], tokens: int) -> Iterator[tuple[dict[str, Tensor], float]]:
    """Parts of a batch, each with its share of the batch's mean: of the rows, or of the tokens that have a label."""
    labels = batch["labels"]
    counts = (labels != IGNORED).sum(1) if labels.ndim > 1 else torch.ones(len(labels))
    rows = max(1, tokens * len(labels) // batch["input_ids"].numel())
    for start in range(0, len(labels), rows):
        share = float(counts[start : start + rows].sum() / counts.sum())
        if share > 0:  # the mean over no label at all is not a number
            yield {name: tensor[start : start + rows] for name, tensor in batch.items()}, share


@contextlib.contextmanager
def _requires_grad(parameters: Iterable[nn.Parameter], wanted: bool) -> Iterator[None]:
    parameters = list(parameters)
    for parameter in parameters:
        parameter.requires_grad_(wanted)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(not wanted)
