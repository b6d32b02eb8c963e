"""Linear maps with packed weights: int8 and fp8 by torchao, nf4 (4 bits) by bitsandbytes; `packed.py` makes a base of
them.

A library packs a weight, and multiplies an input, which stays in float, by it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from sparsehub.backbone import Arena
from sparsehub.extras import require

EXTRA = "quantised"


class PackedWeight(Protocol):
    """A weight as a library has packed it."""

    @property
    def tensors(self) -> Sequence[Tensor]:
        """All that the product reads: levels and scales."""

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """x W' + b: [..., in] to [..., out], in the dtype of x, which is that of the weight."""

    def dequantised(self) -> Tensor:
        """[out, in] what the packed weight stands for, rounded to its dtype."""


class TorchaoWeight:
    """A weight in int8 or fp8, with a scale for each output. configuration: the name of torchao's."""

    def __init__(self, configuration: str, weight: Tensor):
        torchao = require("torchao.quantization", EXTRA)
        holder = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        holder.weight = nn.Parameter(weight, requires_grad=False)
        torchao.quantize_(holder, getattr(torchao, configuration)())
        self._weight = holder.weight.detach()
        self.tensors = _inside(self._weight)

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """x W' + b."""
        return functional.linear(x, self._weight, bias)

    def dequantised(self) -> Tensor:
        """[out, in]."""
        weight: Tensor = self._weight.dequantize()
        return weight


def _inside(weight: Any) -> list[Tensor]:
    """The plain tensors that a tensor of torchao's kinds is made of."""
    if not hasattr(weight, "__tensor_flatten__"):
        return [weight]
    return [tensor for name in weight.__tensor_flatten__()[0] for tensor in _inside(getattr(weight, name))]


class Nf4Weight:
    """A weight in 4-bit normal floats, with a scale for each 64 of them."""

    def __init__(self, weight: Tensor):
        self._library: Any = require("bitsandbytes", EXTRA)
        self._packed, self._state = self._library.functional.quantize_4bit(
            weight.contiguous(), blocksize=64, quant_type="nf4"
        )
        self.tensors = [self._packed, self._state.absmax, self._state.code]

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """x W' + b."""
        y: Tensor = self._library.matmul_4bit(x.contiguous(), self._packed.t(), quant_state=self._state, bias=bias)
        return y

    def dequantised(self) -> Tensor:
        """[out, in]."""
        weight: Tensor = self._library.functional.dequantize_4bit(self._packed, self._state)
        return weight


PACKERS: dict[str, Callable[[Tensor], PackedWeight]] = {
    "int8": functools.partial(TorchaoWeight, "Int8WeightOnlyConfig"),
    "fp8": functools.partial(TorchaoWeight, "Float8WeightOnlyConfig"),
    "nf4": Nf4Weight,
}


class PackedMatrix:
    """A Linear or Conv1D map of a packed base; `MixedBatch` multiplies by it.

    base: gives the float weight [out, in], where the map computes.
    """

    def __init__(self, kind: str, module: nn.Module, base: Callable[[], Tensor]):
        self._kind, self._base = kind, base
        self._module: Any = module  # whose bias it adds
        self.weight = PACKERS[kind](base())

    @property
    def tensors(self) -> Sequence[Tensor]:
        """What is in memory for it."""
        return self.weight.tensors

    def __call__(self, x: Tensor) -> Tensor:
        """x W' + b: [..., in] to [..., out], contiguous."""
        return self.weight.product(x, self._module.bias).contiguous()

    def pack(self) -> None:
        """Pack the float weight once more, into the same memory."""
        for mine, right in zip(self.tensors, PACKERS[self._kind](self._base()).tensors, strict=True):
            mine.copy_(right)


@dataclass(frozen=True)
class PackedBase:
    """The packed weights of a backbone, and whether tasks that were trained on its float weights may run on them."""

    weights: str  # their kind, one of `PACKERS`
    matrices: Mapping[int, PackedMatrix]  # by target index
    allowed: bool
    arena: Arena
    # By arena name: those that stay in float where passes run, when the arena is in host memory; empty when it is not,
    # since they are views of it then.
    copies: Mapping[str, nn.Parameter]

    @property
    def tensors(self) -> list[tuple[str, Tensor]]:
        """All that passes read instead of the arena, with what to call it in the log."""
        packed = [(f"{self.weights} weights", tensor) for its in self.matrices.values() for tensor in its.tensors]
        return packed + [("the weights on the device", parameter.data) for parameter in self.copies.values()]

    @torch.no_grad()
    def copy_again(self) -> None:
        """Make all of it again of the arena, which holds the base weights, into the same memory."""
        for name, parameter in self.copies.items():
            parameter.data.copy_(self.arena.view(name))
        for matrix in self.matrices.values():
            matrix.pack()
