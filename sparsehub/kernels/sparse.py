"""The arguments of the sparse kernels: each task's change of a matrix, and which tokens belong to which task.

The engine makes them (`adapter_weights`, `mixed`); the kernels read them by address.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

WIDEST_BLOCK = 32  # tokens that the native kernel takes at once
MAX_SHORT_COLUMNS = 1 << 16  # columns that uint16 can number
ADDRESSES = 5  # a row of a table: starts, columns, values, bias, order (a norm: weight, -, -, bias, -); 0 for absent
Addresses = tuple[int, int, int, int, int]


def column_dtype(columns: int) -> torch.dtype:
    """The dtype that numbers a matrix's columns: two bytes where they fit."""
    return torch.uint16 if columns <= MAX_SHORT_COLUMNS else torch.int32


@dataclass(frozen=True)
class SparseChange:
    """One task's change of one matrix: dW [out, in] in compressed sparse rows, and db [out]; either may be absent.

    All tensors are on one device.
    """

    shape: tuple[int, int]  # (out, in)
    starts: Tensor | None = None  # [out + 1] int32
    columns: Tensor | None = None  # [nnz] uint16, or int32 where there are more than 65,536 columns
    values: Tensor | None = None  # [nnz] float32 on the CPU, the activations' dtype on a GPU
    bias: Tensor | None = None  # db: [out] float32
    # [out] the rows by falling number of entries: int32 for a GPU; uint8 for the native kernels, which sort within each
    # 64 rows and count from the first of them
    order: Tensor | None = None

    @property
    def addresses(self) -> Addresses:
        """In the order of the table's columns."""
        return tuple(0 if t is None else t.data_ptr() for t in self._tensors)  # type: ignore[return-value]

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def tensors(self) -> Sequence[Tensor]:
        """Those that there are."""
        return [tensor for tensor in self._tensors if tensor is not None]

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

    def has_true_copy(self) -> bool:
        """Whether `csr`, where it was made, still says what the rest says."""
        csr: Tensor | None = self.__dict__.get("csr")
        if csr is None or self.starts is None or self.columns is None or self.values is None:
            return True
        pairs = (
            (csr.crow_indices(), self.starts),
            (csr.col_indices(), self.columns.int()),
            (csr.values(), self.values.float()),
        )
        return all(torch.equal(copy, own) for copy, own in pairs)


def for_gpu(change: SparseChange, dtype: torch.dtype) -> SparseChange:
    """The same change as the GPU kernels read it: values in the activations' dtype, rows of like length together."""
    assert change.starts is not None and change.values is not None
    order = torch.argsort(change.starts.diff(), descending=True, stable=True).int()
    return dataclasses.replace(change, values=change.values.to(dtype), order=order)


@dataclass(frozen=True)
class ScaleShift:
    """One task's scale and shift of a norm (LayerNorm, RMSNorm), whole, not as a difference."""

    weight: Tensor  # [width] float32
    bias: Tensor | None = None  # [width] float32; None where the norm has none

    @property
    def addresses(self) -> Addresses:
        """In the order of the table's columns."""
        return self.weight.data_ptr(), 0, 0, 0 if self.bias is None else self.bias.data_ptr(), 0

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def tensors(self) -> Sequence[Tensor]:
        """Those that there are."""
        return [self.weight] if self.bias is None else [self.weight, self.bias]


NOTHING: Addresses = (0, 0, 0, 0, 0)
Part = TypeVar("Part", SparseChange, ScaleShift)


class Changes(NamedTuple, Generic[Part]):
    """The changes of one module for all tasks of a batch, as the engine hands them to a kernel.

    `parts` and `tables` say the same; a kernel reads the one or the other. A tuple, since one is made for every module
    of every batch.
    """

    parts: Sequence[Part | None]  # by slot; None where a task changes nothing here
    tables: Tensor  # [modules, slots, ADDRESSES] int64 on the device: addresses of the parts of all modules
    module: int  # this module's place in `tables`
    address: int  # of tables[module]


def changes_of(parts: Sequence[Part | None], device: torch.device | str = "cpu") -> Changes[Part]:
    """Changes of a single module, with a table of their own."""
    addresses = [part.addresses if part is not None else NOTHING for part in parts]
    tables = torch.tensor([addresses], dtype=torch.int64, device=device)
    return Changes(parts, tables, 0, tables.data_ptr())


class Map(NamedTuple):
    """One of the linear maps that `linear` computes from one input: x W + b, and each task's changes of W' and b."""

    weight: Tensor  # W: [in, out], of the input's dtype
    bias: Tensor | None  # b: [out], of the input's dtype
    changes: Changes[SparseChange]


@dataclass(frozen=True)
class Segments:
    """Which tokens of a batch belong to which task; made by the engine for every mixed batch."""

    bounds: tuple[tuple[int, int, int], ...]  # (slot, start, stop) of contiguous tokens, not overlapping, start < stop
    # [count, 3] int64 on the CPU (of `segments_in` where its caller has them): slot, first token, tokens (WIDEST_BLOCK
    # at most, and 0 of a block that only fills up)
    blocks: Tensor
    address: int  # of `blocks`
    count: int  # blocks
    most: int  # tokens of the largest block, or more

    def blocks_on(self, device: torch.device) -> Tensor:
        """The blocks on a device; copied once."""
        return self._copies.setdefault("blocks", self.blocks.to(device))

    def slots_on(self, device: torch.device, tokens: int) -> Tensor:
        """[tokens] int32 on a device: each token's slot, -1 where it belongs to no task; made once."""
        if "slots" not in self._copies:
            slots = torch.full((tokens,), -1, dtype=torch.int32)
            for slot, start, stop in self.bounds:
                slots[start:stop] = slot
            self._copies["slots"] = slots.to(device)
        return self._copies["slots"]

    @cached_property
    def _copies(self) -> dict[str, Tensor]:
        return {}


def bounds_of(counts: Iterable[int], first_slot: int = 0) -> list[tuple[int, int, int]]:
    """(slot, first row, row after the last) of each task, whose rows lie one task after the other. counts: rows."""
    bounds, start = [], 0
    for slot, count in enumerate(counts, first_slot):
        bounds.append((slot, start, start + count))
        start += count
    return bounds


def segments_of(bounds: Sequence[tuple[int, int, int]], tokens_a_row: int = 1) -> Segments:
    """The segments of a batch. bounds: (slot, start, stop) of rows; each row has `tokens_a_row` tokens."""
    scaled = tuple((slot, start * tokens_a_row, stop * tokens_a_row) for slot, start, stop in bounds)
    blocks = [
        (slot, token, min(WIDEST_BLOCK, stop - token))
        for slot, start, stop in scaled
        for token in range(start, stop, WIDEST_BLOCK)
    ]
    table = torch.tensor(blocks, dtype=torch.int64).view(-1, 3)
    most = max((count for _, _, count in blocks), default=0)
    return Segments(scaled, table, table.data_ptr(), len(blocks), most)


def segments_in(bounds: Sequence[tuple[int, int, int]], blocks: Tensor, slots: Tensor, most: int) -> Segments:
    """Segments in memory of the caller's on the device, which a captured graph reads again at every replay.

    blocks: [count, 3] int64, as `Segments.blocks`; slots: [tokens] int32, as `Segments.slots_on`; most: tokens of a
    block, at least as many as the largest has.
    """
    segments = Segments(tuple(bounds), blocks, blocks.data_ptr(), len(blocks), most)
    segments._copies.update(blocks=blocks, slots=slots)
    return segments
