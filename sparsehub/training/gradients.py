"""The gradient of the mean loss over the calibration batches, for the selection rules that ask for it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from sparsehub.package.model import TaskModel


def summed_gradients(
    task_model: TaskModel, batches: Iterable[Mapping[str, Tensor]], names: Iterable[str], on_batch: Callable[[], None]
) -> dict[str, Tensor]:
    """By parameter name, gradients summed over the batches: the scale does not matter to a ranking.

    Dropout is off and the head is the fresh one. Parameters that the loss does not reach have a gradient of zero.
    """
    parameters = dict(task_model.backbone.module.named_parameters(remove_duplicate=False))
    wanted = {name: parameters[name] for name in names}
    head = [parameter for name, parameter in task_model.model.named_parameters() if name in set(task_model.head)]
    task_model.model.eval()
    with _requires_grad(wanted.values(), True), _requires_grad(head, False):
        for batch in batches:
            inputs = {name: tensor.to(task_model.backbone.device) for name, tensor in batch.items()}
            task_model.model(**inputs).loss.backward()
            on_batch()
    gradients = {n: p.grad if p.grad is not None else torch.zeros_like(p) for n, p in wanted.items()}
    for parameter in wanted.values():
        parameter.grad = None
    return gradients


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
