"""The diagonal of the Hessian, estimated by random probes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from sparsehub.package.task_model import TaskModel
from sparsehub.training.gradients import (
    Batch,
    OnBatch,
    candidates_named,
    head_of,
    on_device,
    pass_tokens,
    passes,
    requires_grad,
)

GROUP_BYTES = 64 << 20  # parameters that are probed at once: their gradients, with their graph, lie in memory
PASS_TOKENS = {"cpu": 64, "cuda": 2048}  # a graph of second derivatives takes several times a pass's activations


def hessian_diagonal(
    task_model: TaskModel, batches: Sequence[Batch], names: Iterable[str], on_batch: OnBatch, *, probes: int, seed: int
) -> dict[str, Tensor]:
    """By parameter name in bfloat16, the Hessian's diagonal of each batch's mean loss, summed over the batches.

    Every pass draws `probes` new vectors z of random signs, zero outside a group of parameters, and takes the mean of
    z * Hz (exact second derivatives, no finite differences). Dropout is off. The estimate's own noise is far above what
    bfloat16 rounds away.
    """
    wanted = candidates_named(task_model, names)
    generator = torch.Generator(task_model.backbone.device).manual_seed(seed)
    task_model.model.eval()
    estimates: dict[str, Tensor] = {}
    groups = list(_groups(wanted))
    # the fused attention kernels have no second derivative
    with requires_grad(head_of(task_model).values(), False), sdpa_kernel(SDPBackend.MATH):
        for number, group in enumerate(groups):
            with requires_grad(group.values(), True):
                estimates |= _probe(task_model, batches, group, generator, probes, on_batch if number == 0 else _silent)
    return estimates


def _silent() -> None:
    """The later groups see the same batches again: they are reported once."""


def _groups(parameters: Mapping[str, nn.Parameter]) -> Iterator[dict[str, nn.Parameter]]:
    group: dict[str, nn.Parameter] = {}
    for name, parameter in parameters.items():
        if group and sum(p.nbytes for p in group.values()) + parameter.nbytes > GROUP_BYTES:
            yield group
            group = {}
        group[name] = parameter
    if group:
        yield group


def _probe(
    task_model: TaskModel,
    batches: Iterable[Batch],
    group: Mapping[str, nn.Parameter],
    generator: torch.Generator,
    probes: int,
    on_batch: OnBatch,
) -> dict[str, Tensor]:
    parameters = list(group.values())
    sums = [torch.zeros_like(parameter) for parameter in parameters]
    for batch in batches:
        inputs = on_device(batch, task_model)
        for part, share in passes(inputs, pass_tokens(task_model, PASS_TOKENS)):
            loss = task_model.model(**part).loss * share
            if not loss.requires_grad:
                break  # it reaches no parameter of this group: a pooler that the head does not read, for instance
            gradients = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
            for probe in range(probes):
                _add_probe(sums, parameters, gradients, generator, 1 / probes, last=probe == probes - 1)
        on_batch()
    return {name: total.to(torch.bfloat16) for name, total in zip(group, sums, strict=True)}


def _add_probe(
    sums: Sequence[Tensor],
    parameters: Sequence[nn.Parameter],
    gradients: Sequence[Tensor | None],
    generator: torch.Generator,
    share: float,
    *,
    last: bool,
) -> None:
    """sums += share * z * Hz for one z of random signs."""
    signs = [torch.empty_like(p).bernoulli_(generator=generator).mul_(2).sub_(1) for p in parameters]
    # a linear last layer leaves gradients that do not depend on any parameter of the group: their Hz is zero
    pairs = [(g, z) for g, z in zip(gradients, signs, strict=True) if g is not None and g.requires_grad]
    if not pairs:
        return
    # z as the outer gradient: the same as differentiating z * g summed up, without handle that product
    outputs, outer = zip(*pairs, strict=True)
    curved = torch.autograd.grad(outputs, parameters, outer, retain_graph=not last, allow_unused=True)
    for total, z, hz in zip(sums, signs, curved, strict=True):
        if hz is not None:
            total.addcmul_(z, hz.detach(), value=share)
