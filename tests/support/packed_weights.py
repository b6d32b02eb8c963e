"""A packed weight for tests, which needs no library: 8 bits with a scale for each output."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


class PlainWeight:
    """Stands for a weight that torchao or bitsandbytes has packed."""

    def __init__(self, weight: Tensor):
        scale = weight.float().abs().amax(1, keepdim=True).clamp_min(1e-6) / 127
        self.tensors, self._dtype = [(weight.float() / scale).round().to(torch.int8), scale], weight.dtype

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """x W' + b."""
        return functional.linear(x, self.dequantised(), bias)

    def dequantised(self) -> Tensor:
        """[out, in]."""
        levels, scale = self.tensors
        return (levels.float() * scale).to(self._dtype)
