"""Integrity checks: a digest per block of the base weights, compared block by block while the engine serves."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsehub.backbone import Arena
from sparsehub.patch import Patch

BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class _Block:
    dtype: torch.dtype
    start: int
    stop: int


class IntegrityChecker:
    """Says for an `ArenaManager` whether the base weights are still those that were loaded.

    Made while the arena holds the base weights. Not thread-safe: the manager's lock is held around every call.
    """

    def __init__(self, arena: Arena):
        self._arena = arena
        self._blocks = [
            _Block(dtype, start, min(start + BLOCK_BYTES // dtype.itemsize, len(buffer)))
            for dtype, buffer in arena.buffers.items()
            for start in range(0, len(buffer), BLOCK_BYTES // dtype.itemsize)
        ]
        self._digests = [self._digest(block, None) for block in self._blocks]
        self._next = 0

    @property
    def blocks(self) -> int:
        """How many blocks there are; as many calls of `check_next` check all weights."""
        return len(self._blocks)

    def check_next(self, patch: Patch | None) -> bool:
        """Whether the next block is what it was. patch: the one in the arena, None for the base weights."""
        index = self._next
        self._next = (index + 1) % len(self._blocks)
        return self._is_sound(index, patch)

    def check_all(self, patch: Patch | None) -> bool:
        """Whether every block is what it was. patch: the one in the arena, None for the base weights."""
        return all(self._is_sound(index, patch) for index in range(len(self._blocks)))

    def _is_sound(self, index: int, patch: Patch | None) -> bool:
        return self._digest(self._blocks[index], patch) == self._digests[index]

    def _digest(self, block: _Block, patch: Patch | None) -> bytes:
        """sha256 of a block's base weights: where a patch is applied, with the base values that it has saved."""
        data = self._arena.buffers[block.dtype][block.start : block.stop]
        for segment in patch.segments if patch is not None else ():
            if segment.dtype == block.dtype:
                data = _with_base(data, segment.positions, segment.base, block)
        return hashlib.sha256(data.view(torch.uint8).cpu().numpy().data).digest()


def _with_base(data: Tensor, positions: Tensor, base: Tensor, block: _Block) -> Tensor:
    """A block's data with the saved base values at a patch's positions; a copy where there are any."""
    edges = torch.tensor([block.start, block.stop], device=positions.device, dtype=positions.dtype)
    first, last = torch.searchsorted(positions, edges).tolist()
    if first == last:
        return data
    copy = data.clone()
    copy[positions[first:last].long() - block.start] = base[first:last]
    return copy
