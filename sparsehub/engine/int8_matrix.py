"""Linear maps with weights of 8 bits, and the looks at them while serving; `int8.py` makes them of a backbone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparsehub import kernels
from sparsehub.engine.checksum import checksum
from sparsehub.kernels.sparse import ADDRESSES, NOTHING, Addresses


class QuantisedInput:
    """An input of int8 maps, rounded to 8 bits row by row; made once for maps that share it."""

    def __init__(self, x: Tensor):
        self.given = x
        self.whole = x.contiguous()
        self.rows = kernels.quantise_rows(self.whole.view(-1, x.shape[-1]))


class Int8Matrix:
    """A Linear map of an int8 base; `MixedBatch` multiplies by it.

    Weights have a scale for each output, and each row of the input a scale of its own, taken when it comes: so a row's
    result does not depend on the rows beside it.
    """

    def __init__(self, linear: nn.Linear):
        self._linear = linear
        self._weight = kernels.pack_int8(linear.weight.detach())
        self._digest = checksum(self._weight.tensors)

    @torch.no_grad()
    def pack(self) -> None:
        """Round the float weights, which must be the base's, once more, into the same memory."""
        fresh = kernels.pack_int8(self._linear.weight.detach())
        for mine, right in zip(self._weight.tensors, fresh.tensors, strict=True):
            mine.copy_(right)
        self._digest = checksum(self._weight.tensors)

    def is_sound(self) -> bool:
        """Whether the packed weights are what they were when they were packed."""
        return checksum(self._weight.tensors) == self._digest

    @property
    def nbytes(self) -> int:
        """Bytes of the packed weights, with their scales."""
        return sum(tensor.nbytes for tensor in self._weight.tensors)

    @property
    def addresses(self) -> Addresses:
        """Where the weights are, for the address tables of a batch; they stay there."""
        return self._weight.addresses

    def __call__(self, x: Tensor) -> Tensor:
        """x W + b: [..., in] float32 to [..., out] float32."""
        return self.product(QuantisedInput(x))

    def product(self, x: QuantisedInput) -> Tensor:
        """The same of an input that several maps share."""
        return kernels.int8_product(x.rows, self._weight, self._linear.bias).view(*x.given.shape[:-1], -1)

    def with_changes(self, changes: kernels.Changes[kernels.SparseChange]) -> kernels.Int8Map:
        """The map, and what the tasks of a batch change in it."""
        return kernels.Int8Map(self._weight, self._linear.bias, changes)


@dataclass(frozen=True)
class Int8Base:
    """The int8 weights of a backbone, and whether tasks that were trained on its float weights may run on them."""

    matrices: Mapping[int, Int8Matrix]  # by target index
    allowed: bool
    gelus: Sequence[nn.Module] = ()  # those that compute the exact GELU, which runs by our own kernel
    weights: str = "int8"  # as `PackedBase` says it

    def addresses(self, count: int) -> Tensor:
        """[count, ADDRESSES] int64 in host memory: where the weights of so many targets are, by their indices."""
        rows = [self.matrices[i].addresses if i in self.matrices else NOTHING for i in range(count)]
        return torch.tensor(rows, dtype=torch.int64).view(-1, ADDRESSES)

    def copy_again(self) -> None:
        """Round the float weights once more. The arena holds the base weights."""
        for matrix in self.matrices.values():
            matrix.pack()


class Int8Digests:
    """The packed weights as `IntegrityRound` looks at copies of the arena: one matrix at a time."""

    def __init__(self, base: Int8Base):
        self._matrices = list(base.matrices.values())
        self.whole_cost = sum(map(self.cost, range(len(self._matrices))))

    def __len__(self) -> int:
        return len(self._matrices)

    def cost(self, index: int) -> int:
        """What it costs to look at a matrix, in bytes."""
        return self._matrices[index].nbytes

    def damaged(self, index: int) -> str | None:
        """What to call a matrix that is not what it was; None where it is."""
        return None if self._matrices[index].is_sound() else "int8 weights"

    def first_damaged(self) -> str | None:
        """The same of the first one that is damaged; None where all are right."""
        return next((name for index in range(len(self)) if (name := self.damaged(index)) is not None), None)
