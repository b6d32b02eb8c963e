"""Linear maps with weights of 8 bits, and the looks at them while serving; `int8.py` makes them of a backbone."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparsehub import kernels
from sparsehub.engine.checksum import checksum

# Values of an input, besides 0, on either side of it. Without VNNI the instruction sums two products in 16 bits, which
# hold them only where inputs have one bit less.
_STEPS, _STEPS_WITHOUT_VNNI = 127, 63
_SMALLEST = 1e-30  # of a row's largest value: rows of zeros are divided by it


class ScaledRows:
    """An input of int8 maps, each of its rows divided by its largest absolute value."""

    def __init__(self, x: Tensor):
        self.given = x
        self.rows, self.sizes = kernels.scale_rows(x.reshape(-1, x.shape[-1]).contiguous(), _SMALLEST)


class Int8Matrix:
    """A Linear map of an int8 base; `MixedBatch` multiplies by it.

    Weights have a scale for each output, and each row of the input a scale of its own, taken when it comes: so a row's
    result does not depend on the rows beside it. Raises `RuntimeError` or `AttributeError`
    where torch has no such products.
    """

    def __init__(self, linear: nn.Linear):
        self._linear = linear
        self._steps = _STEPS if torch.cpu._is_vnni_supported() else _STEPS_WITHOUT_VNNI
        self.pack()

    @torch.no_grad()
    def pack(self) -> None:
        """Round the float weights, which must be the base's, once more."""
        weight = self._linear.weight.detach()
        scales = (weight.abs().amax(1) / 127).clamp_min(_SMALLEST).double()
        zeros = torch.zeros(len(weight), dtype=torch.long)
        with warnings.catch_warnings():  # torch says that this goes some day; its products are the fastest here
            warnings.simplefilter("ignore", UserWarning)
            rounded = torch.quantize_per_channel(weight, scales, zeros, 0, torch.qint8)
        self._packed = torch.ops.quantized.linear_prepack(rounded, None)
        self._digest = self._checksum()

    def is_sound(self) -> bool:
        """Whether the packed weights are what they were when they were packed."""
        return self._checksum() == self._digest

    @property
    def nbytes(self) -> int:
        """Bytes of the packed weights, without their scales."""
        return self._linear.weight.numel()

    def __call__(self, x: Tensor) -> Tensor:
        """x W + b: [..., in] float32 to [..., out] float32."""
        return self.product(ScaledRows(x))

    def product(self, x: ScaledRows) -> Tensor:
        """The same of an input that several maps share."""
        product: Any = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32
        y: Tensor = product(x.rows, 1 / self._steps, self._steps + 1, self._packed)
        kernels.unscale_rows_(y, x.sizes, self._linear.bias)
        return y.view(*x.given.shape[:-1], y.shape[-1])

    def _checksum(self) -> int:
        weight, _ = torch.ops.quantized.linear_unpack(self._packed)
        return checksum([weight.int_repr(), weight.q_per_channel_scales()])


@dataclass(frozen=True)
class Int8Base:
    """The int8 weights of a backbone, and whether tasks that were trained on its float weights may run on them."""

    matrices: Mapping[int, Int8Matrix]  # by target index
    allowed: bool


class Int8Digests:
    """The packed weights as `IntegrityRound` looks at copies of the arena: one matrix at a time."""

    def __init__(self, base: Int8Base):
        self._matrices = list(base.matrices.values())
        self.whole_cost = sum(map(self.cost, range(len(self._matrices))))

    def __len__(self) -> int:
        return len(self._matrices)

    def cost(self, index: int) -> int:
        """What it costs to look at a matrix, in bytes: it is unpacked first."""
        return 4 * self._matrices[index].nbytes

    def damaged(self, index: int) -> str | None:
        """What to call a matrix that is not what it was; None where it is."""
        return None if self._matrices[index].is_sound() else "int8 weights"

    def first_damaged(self) -> str | None:
        """The same of the first one that is damaged; None where all are right."""
        return next((name for index in range(len(self)) if (name := self.damaged(index)) is not None), None)
