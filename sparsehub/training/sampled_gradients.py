"""A Linear's weight gradient at its chosen entries alone, by a sampled product: no dense gradient is ever made.

On a CPU in float32 `torch.sparse.sampled_addmm` is 3 to 12 times as fast as the dense product up to 5% of the entries
(384 x 384 to 3072 x 768, 128 to 1,024 tokens); beyond that the dense product catches up.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

MOST = 0.05  # density of a weight up to which sampling pays
Sink = Callable[[Tensor], None]


class _SampledLinear(torch.autograd.Function):
    """y = x W' + b whose backward pass hands the chosen entries of dL/dW to a sink."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, anchor: Tensor, sink: Callable[[Tensor, Tensor], None]
    ) -> Tensor:
        del anchor  # it requires a gradient, so the output does, even where neither input nor bias do
        ctx.save_for_backward(x, weight)
        ctx.sink = sink
        return nn.functional.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, Tensor | None, None, None]:
        (gradient,), (x, weight) = gradients, ctx.saved_tensors
        rows = gradient.reshape(-1, gradient.shape[-1])
        ctx.sink(rows, x.reshape(-1, x.shape[-1]))
        return (
            gradient @ weight if ctx.needs_input_grad[0] else None,
            None,  # a use of the weight elsewhere keeps its own, dense gradient
            rows.sum(0) if ctx.needs_input_grad[2] else None,
            None,
            None,
        )


class SampledLinears:
    """Puts the sampled product into the Linear layers of a backbone whose weights are chosen sparsely enough.

    parameters: of the model, by name; mask: positions by parameter name; sinks: what takes a parameter's gradient at
    its positions; anchor: a parameter.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        mask: Mapping[str, Tensor],
        sinks: Mapping[str, Sink],
        anchor: nn.Parameter,
    ):
        self._modules: list[nn.Linear] = []
        for name, owners in _owners(model, parameters, mask).items():
            sample = _sampler(owners[0].weight, mask[name], sinks[name])
            for module in owners:
                module.forward = _forward(module, anchor, sample)  # type: ignore[assignment, method-assign]
                self._modules.append(module)

    def remove(self) -> None:
        """Leave the layers as they were."""
        for module in self._modules:
            del module.forward
        self._modules.clear()


def _owners(
    model: nn.Module, parameters: Mapping[str, nn.Parameter], mask: Mapping[str, Tensor]
) -> dict[str, list[nn.Linear]]:
    """The Linear layers of each weight that pays; weights that anything else uses too are left out."""
    users: dict[int, list[nn.Module]] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            users.setdefault(id(parameter), []).append(module)
    found = {}
    for name, positions in mask.items():
        weight = parameters[name]
        owners = [m for m in users[id(weight)] if type(m) is nn.Linear and m.weight is weight]
        if len(owners) == len(users[id(weight)]) and len(positions) <= MOST * weight.numel():
            found[name] = owners
    return found


def _sampler(weight: Tensor, positions: Tensor, sink: Sink) -> Callable[[Tensor, Tensor], None]:
    rows, columns = positions // weight.shape[1], positions % weight.shape[1]
    counts = torch.bincount(rows, minlength=weight.shape[0])
    starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)]).to(torch.int32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls all of its CSR a beta
        pattern = torch.sparse_csr_tensor(
            starts, columns.to(torch.int32), torch.zeros(len(positions)), tuple(weight.shape)
        )

    def sample(gradient: Tensor, x: Tensor) -> None:
        """gradient: [tokens, out]; x: [tokens, in]. Row-major, as sorted flat positions are."""
        sink(torch.sparse.sampled_addmm(pattern, gradient.T, x, beta=0.0).values())

    return sample


def _forward(
    module: nn.Linear, anchor: nn.Parameter, sample: Callable[[Tensor, Tensor], None]
) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        found: Tensor = _SampledLinear.apply(x, module.weight, module.bias, anchor, sample)
        return found

    return forward
