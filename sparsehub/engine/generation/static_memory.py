"""Memory that stays: where the kernels of mixed decode steps read whose tasks their tokens are, replayed or not."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch

from sparsehub.engine.adapter_weights import AdapterWeights
from sparsehub.engine.address_tables import address_tables
from sparsehub.engine.mixed_forward import Bounds, MixedBatch, RowGroups
from sparsehub.engine.rounding import power_of_two
from sparsehub.engine.target_modules import TargetModules
from sparsehub.kernels import Segments, segments_in
from sparsehub.kernels.sparse import WIDEST_BLOCK, bounds_of

NOTHING = 0  # the slot of padding, which no task changes
IDLE = (NOTHING, 0, 0)  # a block of no tokens


class StaticMemory:
    """Address tables, blocks of tokens and the slot of every token, at addresses that never change; a `Packer` has one,
    and each batch that it makes there takes the place of the one before.

    rows: texts of a step, at most.
    """

    def __init__(self, targets: TargetModules, rows: int):
        device = targets.device
        self._targets = targets
        # A slot that holds no task of this batch is read by no kernel; at first all of them change nothing.
        self._tables = targets.base_addresses()[:, None].repeat(1, rows + 1, 1).to(device)
        self._blocks = torch.zeros((rows, 3), dtype=torch.int64, device=device)
        self._slots = torch.zeros(rows, dtype=torch.int32, device=device)

    def batch(
        self, adapters: Sequence[AdapterWeights | None], counts: Sequence[int], rows: int
    ) -> tuple[MixedBatch, Hashable]:
        """The mixed batch of a decode step, and what its launches have baked in: which targets have a forward of their
        own, how many blocks there are, and of how many tokens. counts: tokens of each adapter's; rows: of all, padding
        included."""
        slots = [None, *adapters]
        self._tables[:, : len(slots)].copy_(address_tables(self._targets, slots))
        bounds = bounds_of(counts, first_slot=1)
        if (start := sum(counts)) < rows:
            bounds.append((NOTHING, start, rows))
        segments = self._write(bounds, rows)
        batch = MixedBatch(self._targets, slots, _StaticGroups(segments), packed=True, tables=self._tables)
        touched = frozenset[int]().union(*(adapter.parts for adapter in adapters if adapter is not None))
        return batch, (touched, segments.count, segments.most)

    def _write(self, bounds: Bounds, rows: int) -> Segments:
        """Both the number of blocks and the tokens of the largest are powers of two: a graph has them baked in."""
        longest = max(stop - start for slot, start, stop in bounds if slot != NOTHING)
        most = min(power_of_two(longest), WIDEST_BLOCK)
        blocks = [
            (slot, token, min(most, stop - token)) for slot, start, stop in bounds for token in range(start, stop, most)
        ]
        count = min(power_of_two(len(blocks)), rows)
        blocks += [IDLE] * (count - len(blocks))
        slots = [slot for slot, start, stop in bounds for _ in range(start, stop)]
        self._blocks[:count].copy_(torch.tensor(blocks, dtype=torch.int64))
        self._slots[:rows].copy_(torch.tensor(slots, dtype=torch.int32))
        return segments_in(bounds, self._blocks[:count], self._slots[:rows], most)


class _StaticGroups(RowGroups):
    """Row groups that are in `StaticMemory`: each row is one token, of the output layer too."""

    def __init__(self, segments: Segments):
        super().__init__(segments.bounds)
        self._only = segments

    def segments(self, tokens: int) -> Segments:
        """Which rows of an input are which task's; all inputs have the same rows."""
        assert tokens == self.rows, (tokens, self.rows)
        return self._only
