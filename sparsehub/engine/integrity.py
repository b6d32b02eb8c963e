"""Integrity checks: what is computed with, compared piece by piece with what it was when it was made."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsehub.backbone import Arena
from sparsehub.engine.checksum import checksum
from sparsehub.patch import Patch, Segment, new_values

BLOCK_BYTES = 1 << 20
TENSOR_BYTES = 1 << 14  # a tensor costs as much as so many bytes more, however small it is
_BITS = {2: torch.int16, 4: torch.int32}


@dataclass(frozen=True)
class _Block:
    dtype: torch.dtype
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        return (self.stop - self.start) * self.dtype.itemsize


class IntegrityChecker:
    """Says for an `ArenaManager` whether the arena holds what it must: the base weights that were loaded, and in the
    places of the patch that is applied, base and value summed, bit for bit.

    Made while the arena holds the base weights. Not thread-safe: the manager's lock is held around every call.
    """

    def __init__(self, arena: Arena):
        self._arena = arena
        self._blocks = [
            _Block(dtype, start, min(start + BLOCK_BYTES // dtype.itemsize, len(buffer)))
            for dtype, buffer in arena.buffers.items()
            for start in range(0, len(buffer), BLOCK_BYTES // dtype.itemsize)
        ]
        began = time.perf_counter()
        self._digests = [checksum([self._data(block)]) for block in self._blocks]
        self.speed = arena.nbytes / (time.perf_counter() - began)  # bytes a second, of this thread
        self._next = 0

    @property
    def blocks(self) -> int:
        """How many blocks there are; as many calls of `check_next` check all weights."""
        return len(self._blocks)

    def nbytes(self, index: int) -> int:
        """Bytes of a block."""
        return self._blocks[index].nbytes

    def check_next(self, patch: Patch | None) -> bool:
        """Whether the next block is what it must be. patch: the one in the arena, None for the base weights."""
        index = self._next
        self._next = (index + 1) % len(self._blocks)
        return self.is_sound(index, patch)

    def check_all(self, patch: Patch | None) -> bool:
        """Whether every block is what it must be. patch: the one in the arena, None for the base weights."""
        return all(self.is_sound(index, patch) for index in range(len(self._blocks)))

    def is_sound(self, index: int, patch: Patch | None) -> bool:
        """Whether a block is what it must be: what the patch changes in it is base and value, and with the saved base
        values in these places it is the block that was loaded."""
        block = self._blocks[index]
        data = self._data(block)
        if patch is not None:
            for segment in patch.segments:
                if segment.dtype == block.dtype:
                    part = _inside(segment, block)
                    if not _is_applied(data, part, block, patch.value_kind):
                        return False
                    data = _with_base(data, part, block)
        return checksum([data]) == self._digests[index]

    def spans(self, dtype: torch.dtype, nbytes: int) -> Iterator[tuple[range, int, int]]:
        """One of the arena's buffers in runs of blocks of about `nbytes`: the blocks, and the entries (first, after the
        last) that they are."""
        mine = [index for index, block in enumerate(self._blocks) if block.dtype == dtype]
        step = max(1, nbytes // BLOCK_BYTES)
        for place in range(0, len(mine), step):
            run = mine[place : place + step]
            yield range(run[0], run[-1] + 1), self._blocks[run[0]].start, self._blocks[run[-1]].stop

    def _data(self, block: _Block) -> Tensor:
        return self._arena.buffers[block.dtype][block.start : block.stop]


def _inside(segment: Segment, block: _Block) -> Segment:
    """The part of a segment in one block, as far as its positions are in order."""
    edges = torch.tensor([block.start, block.stop], device=segment.positions.device, dtype=segment.positions.dtype)
    first, last = torch.searchsorted(segment.positions, edges).tolist()
    return Segment(segment.dtype, segment.positions[first:last], segment.values[first:last], segment.base[first:last])


def _is_applied(data: Tensor, part: Segment, block: _Block, value_kind: str) -> bool:
    """Whether a block holds what a patch writes into it. Positions that point elsewhere are damaged themselves."""
    places = part.positions.long() - block.start
    if len(places) == 0:
        return True
    low, high = torch.aminmax(places)
    return bool(low >= 0 and high < len(data)) and same_bits(data[places], new_values(part, value_kind))


def _with_base(data: Tensor, part: Segment, block: _Block) -> Tensor:
    """A block's data with the saved base values in a patch's places; a copy where there are any."""
    if len(part.positions) == 0:
        return data
    copy = data.clone()
    copy[part.positions.long() - block.start] = part.base
    return copy


def same_bits(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors of one floating dtype hold the same bits: -0 is not 0, and NaN may be itself."""
    bits = _BITS[first.element_size()]
    return torch.equal(first.view(bits), second.view(bits))


Part = tuple[Tensor, int, int]  # a tensor, and its flat entries from the one up to the other


@dataclass(frozen=True)
class _Piece:
    name: str
    parts: Sequence[Part]
    digest: int

    def is_sound(self) -> bool:
        return checksum(map(_flat, self.parts)) == self.digest


class TensorDigests:
    """Digests of tensors that stay as they were made: a task's on the device or in host memory, a module's buffers.
    `ArenaManager` looks at them in pieces of `BLOCK_BYTES` at most; whoever uses them may look at all of them before.

    named: tensors, each with what to call it in the log; neighbours of one name may be one piece.
    """

    def __init__(self, named: Iterable[tuple[str, Tensor]]):
        self._pieces = [_Piece(name, parts, checksum(map(_flat, parts))) for name, parts in _cut(named)]
        self.whole_cost = sum(map(self.cost, range(len(self._pieces))))

    def __len__(self) -> int:
        return len(self._pieces)

    def cost(self, index: int) -> int:
        """What it costs to look at a piece, in bytes."""
        parts = self._pieces[index].parts
        return sum((stop - start) * tensor.element_size() + TENSOR_BYTES for tensor, start, stop in parts)

    def damaged(self, index: int) -> str | None:
        """The name of a piece that is not what it was; None where it is."""
        piece = self._pieces[index]
        return None if piece.is_sound() else piece.name

    def first_damaged(self) -> str | None:
        """The name of the first piece that is not what it was; None where all are."""
        return next((piece.name for piece in self._pieces if not piece.is_sound()), None)


def _flat(part: Part) -> Tensor:
    tensor, start, stop = part
    flat = tensor.detach().reshape(-1)
    return flat if stop - start == len(flat) else flat[start:stop]


def _cut(named: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Sequence[Part]]]:
    """Pieces of at most `BLOCK_BYTES`: parts of a large tensor, or small ones of one name together."""
    parts: list[Part] = []
    name, size = "", 0
    for its, tensor in named:
        step = BLOCK_BYTES // tensor.element_size()
        for start in range(0, tensor.numel(), step):
            part = (tensor, start, min(start + step, tensor.numel()))
            nbytes = (part[2] - start) * tensor.element_size()
            if parts and (its != name or size + nbytes > BLOCK_BYTES):
                yield name, tuple(parts)
                parts, size = [], 0
            name, size = its, size + nbytes
            parts.append(part)
    if parts:
        yield name, tuple(parts)
