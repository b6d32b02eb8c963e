"""What the sparse kernels work on: changes of a matrix, and which tokens of a batch are whose."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

WIDEST_BLOCK = 32  # tokens that the native kernel takes at once
MAX_SHORT_COLUMNS = 1 << 16
ADDRESSES = 5  # of one part: starts, columns, values (or a norm's weight first), bias, order; 0 for what is absent
Addresses = tuple[int, int, int, int, int]


def column_dtype(columns: int) -> torch.dtype:
    """What numbers a matrix's columns: two bytes where they fit."""
    return torch.uint16 if columns <= MAX_SHORT_COLUMNS else torch.int32


@dataclass(frozen=True)
class SparseChange:
    """dW [out, in] in compressed rows, and db [out]; either may be absent (None).

    starts: [out + 1] int32; columns: [nnz] uint16, or int32 where there are more than 65,536 of them; values: [nnz],
    float32 on the CPU, the activations' dtype on a GPU; bias: [out] float32; order: [out], the rows by falling number
    of entries: int32 for a GPU; uint8 for the native kernels, within each 64 rows and counted from their first. All on
    one device.
    """

    shape: tuple[int, int]
    starts: Tensor | None = None
    columns: Tensor | None = None
    values: Tensor | None = None
    bias: Tensor | None = None
    order: Tensor | None = None

    @property
    def addresses(self) -> Addresses:
        """In the order of the table's columns."""
        return tuple(0 if t is None else t.data_ptr() for t in self._tensors)  # type: ignore[return-value]

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self._tensors if tensor is not None)

    @property
    def _tensors(self) -> tuple[Tensor | None, ...]:
        return self.starts, self.columns, self.values, self.bias, self.order

    @cached_property
    def csr(self) -> Tensor:
        """dW as torch's own sparse matrix, for where there is no kernel; kept once made."""
        assert self.starts is not None and self.columns is not None and self.values is not None
        return torch.sparse_csr_tensor(
            self.starts, self.columns.int(), self.values.float(), self.shape, check_invariants=False
        )


def for_gpu(change: SparseChange, dtype: torch.dtype) -> SparseChange:
    """The same in the form that the GPU kernels read: half the bytes, and rows of like length side by side."""
    assert change.starts is not None and change.values is not None
    order = torch.argsort(change.starts.diff(), descending=True, stable=True).int()
    return dataclasses.replace(change, values=change.values.to(dtype), order=order)


@dataclass(frozen=True)
class ScaleShift:
    """A norm's weight [width] and, where it has one, bias [width]; float32."""

    weight: Tensor
    bias: Tensor | None = None

    @property
    def addresses(self) -> Addresses:
        """In the order of the table's columns."""
        return self.weight.data_ptr(), 0, 0, 0 if self.bias is None else self.bias.data_ptr(), 0

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes + (0 if self.bias is None else self.bias.nbytes)


NOTHING: Addresses = (0, 0, 0, 0, 0)
Part = TypeVar("Part", SparseChange, ScaleShift)


class Changes(NamedTuple, Generic[Part]):
    """What one module has for each task of a batch. A tuple: one is made for every module of every batch.

    parts: by slot, None where a task has nothing; tables: [modules, slots, ADDRESSES] int64, the addresses of the parts
    of many modules, on the device; module: which of them this is; address: of its own part. Parts and addresses say the
    same; a kernel reads the one or the other.
    """

    parts: Sequence[Part | None]
    tables: Tensor
    module: int
    address: int


def changes_of(parts: Sequence[Part | None], device: torch.device | str = "cpu") -> Changes[Part]:
    """Changes with a table of their own."""
    addresses = [part.addresses if part is not None else NOTHING for part in parts]
    tables = torch.tensor([addresses], dtype=torch.int64, device=device)
    return Changes(parts, tables, 0, tables.data_ptr())


class Map(NamedTuple):
    """x W + b and the changes of W' and b. weight: [in, out]; bias: [out] or None; both of the input's dtype."""

    weight: Tensor
    bias: Tensor | None
    changes: Changes[SparseChange]


@dataclass(frozen=True)
class Segments:
    """Which tokens are whose. bounds: (slot, start, stop) of contiguous tokens, not overlapping, start < stop.

    blocks: [blocks, 3] int64 on the CPU (slot, first token, tokens), at `address`, so many of them (`count`), of `most`
    tokens at most.
    """

    bounds: tuple[tuple[int, int, int], ...]
    blocks: Tensor
    address: int
    count: int
    most: int

    def blocks_on(self, device: torch.device) -> Tensor:
        """The blocks on a device; copied once."""
        return self._copies.setdefault("blocks", self.blocks.to(device))

    def slots_on(self, device: torch.device, tokens: int) -> Tensor:
        """[tokens] int32 on a device: each token's slot, -1 for a token of nobody; made once."""
        if "slots" not in self._copies:
            slots = torch.full((tokens,), -1, dtype=torch.int32)
            for slot, start, stop in self.bounds:
                slots[start:stop] = slot
            self._copies["slots"] = slots.to(device)
        return self._copies["slots"]

    @cached_property
    def _copies(self) -> dict[str, Tensor]:
        return {}


def segments_of(bounds: Sequence[tuple[int, int, int]], tokens_a_row: int = 1) -> Segments:
    """Segments of rows that each have so many tokens."""
    scaled = tuple((slot, start * tokens_a_row, stop * tokens_a_row) for slot, start, stop in bounds)
    blocks = [
        (slot, token, min(WIDEST_BLOCK, stop - token))
        for slot, start, stop in scaled
        for token in range(start, stop, WIDEST_BLOCK)
    ]
    table = torch.tensor(blocks, dtype=torch.int64).view(-1, 3)
    most = max((count for _, _, count in blocks), default=0)
    return Segments(scaled, table, table.data_ptr(), len(blocks), most)
