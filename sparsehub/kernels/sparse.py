"""What the sparse kernels work on: changes of a matrix, and which tokens of a batch are whose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

WIDEST_BLOCK = 32  # tokens that the native kernel takes at once
ALIGNED_BLOCK = 16  # blocks begin at multiples of so many tokens: vectors then lie aligned in packed memory
MAX_SHORT_COLUMNS = 1 << 16


def column_dtype(columns: int) -> torch.dtype:
    """What numbers a matrix's columns: two bytes where they fit."""
    return torch.uint16 if columns <= MAX_SHORT_COLUMNS else torch.int32


@dataclass(frozen=True)
class SparseChange:
    """dW [out, in] in compressed rows, and db [out]; either may be absent (None).

    starts: [out + 1] int32; columns: [nnz] uint16, or int32 where there are more than 65,536 of them; values: [nnz];
    bias: [out]; both float32 on the CPU. All on one device.
    """

    shape: tuple[int, int]
    starts: Tensor | None = None
    columns: Tensor | None = None
    values: Tensor | None = None
    bias: Tensor | None = None

    @property
    def addresses(self) -> tuple[int, int, int, int]:
        """Of starts, columns, values and bias; 0 for what is absent."""
        return tuple(0 if t is None else t.data_ptr() for t in self._tensors)  # type: ignore[return-value]

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self._tensors if tensor is not None)

    @property
    def _tensors(self) -> tuple[Tensor | None, ...]:
        return self.starts, self.columns, self.values, self.bias

    @cached_property
    def csr(self) -> Tensor:
        """dW as torch's own sparse matrix, for where there is no kernel; kept once made."""
        assert self.starts is not None and self.columns is not None and self.values is not None
        return torch.sparse_csr_tensor(
            self.starts, self.columns.int(), self.values.float(), self.shape, check_invariants=False
        )


@dataclass(frozen=True)
class ScaleShift:
    """A norm's weight [width] and, where it has one, bias [width]; float32."""

    weight: Tensor
    bias: Tensor | None = None

    @property
    def addresses(self) -> tuple[int, int, int, int]:
        """Of weight and bias; 0 for a bias that is absent."""
        return self.weight.data_ptr(), 0 if self.bias is None else self.bias.data_ptr(), 0, 0

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes + (0 if self.bias is None else self.bias.nbytes)


Part = TypeVar("Part", SparseChange, ScaleShift)


class Changes(NamedTuple, Generic[Part]):
    """What one module has for each task of a batch. A tuple: one is made for every module of every batch.

    parts: by slot, None where a task has nothing; tables: [modules, slots, 4] int64, the addresses of the parts of many
    modules, on the device; module: which of them this is; address: of its own [slots, 4] part. Parts and addresses say
    the same; a kernel reads the one or the other.
    """

    parts: Sequence[Part | None]
    tables: Tensor
    module: int
    address: int


def changes_of(parts: Sequence[Part | None], device: torch.device | str = "cpu") -> Changes[Part]:
    """Changes with a table of their own."""
    addresses = [part.addresses if part is not None else (0, 0, 0, 0) for part in parts]
    tables = torch.tensor([addresses], dtype=torch.int64, device=device)
    return Changes(parts, tables, 0, tables.data_ptr())


@dataclass(frozen=True)
class Segments:
    """Which tokens are whose. bounds: (slot, start, stop) of contiguous tokens, not overlapping, start < stop.

    blocks: [blocks, 4] int64 on the CPU (slot, first token, tokens, place in packed memory in tokens), at `address`, so
    many of them (`count`); packed: length of the packed memory.
    """

    bounds: tuple[tuple[int, int, int], ...]
    blocks: Tensor
    address: int
    count: int
    packed: int


def segments_of(bounds: Sequence[tuple[int, int, int]], tokens_a_row: int = 1) -> Segments:
    """Segments of rows that each have so many tokens."""
    scaled = tuple((slot, start * tokens_a_row, stop * tokens_a_row) for slot, start, stop in bounds)
    blocks, place = [], 0
    for slot, start, stop in scaled:
        for token in range(start, stop, WIDEST_BLOCK):
            count = min(WIDEST_BLOCK, stop - token)
            blocks.append((slot, token, count, place))
            place += -(-count // ALIGNED_BLOCK) * ALIGNED_BLOCK
    table = torch.tensor(blocks, dtype=torch.int64).view(-1, 4)
    return Segments(scaled, table, table.data_ptr(), len(blocks), place)


class Packed(NamedTuple):
    """The input of a sparse linear map, made ready once for all maps that share it.

    x: [tokens, in]; buffer: [packed tokens * in] or longer, the kernel's own copy, where it makes one.
    """

    x: Tensor
    segments: Segments
    buffer: Tensor | None = None
