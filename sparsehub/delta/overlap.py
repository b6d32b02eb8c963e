"""How much two deltas have in common, for `sparsehub diff` and the console."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparsehub.delta.delta import Delta, ParameterDelta


@dataclass(frozen=True)
class Overlap:
    """How many entries two deltas change."""

    shared: int  # that both change
    either: int  # that at least one changes
    agreeing: int  # that both change in the same direction

    @property
    def jaccard(self) -> float:
        """shared / either: 1 for the same entries, 0 for none in common."""
        return self.shared / self.either if self.either else 0.0

    @property
    def sign_agreement(self) -> float:
        """agreeing / shared: 0.5 is what chance gives; 0 where no entry is shared."""
        return self.agreeing / self.shared if self.shared else 0.0


def overlap(first: Delta, second: Delta) -> Overlap:
    """Compare two `add` deltas entry by entry. Parameters are matched by name."""
    names = first.parameters.keys() & second.parameters.keys()
    pairs = [shared_entries(first.parameters[name], second.parameters[name]) for name in names]
    shared = sum(len(places) for places, _ in pairs)
    agreeing = sum(
        int((first.parameters[n].values[a].sign() == second.parameters[n].values[b].sign()).sum())
        for n, (a, b) in zip(names, pairs, strict=True)
    )
    return Overlap(shared, first.nnz + second.nnz - shared, agreeing)


def shared_entries(first: ParameterDelta, second: ParameterDelta) -> tuple[Tensor, Tensor]:
    """Where the entries that both change stand: [k] places in `first`, [k] places in `second`, in order."""
    if len(second.indices) == 0:
        return torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64)
    places = torch.searchsorted(second.indices, first.indices).clamp(max=len(second.indices) - 1)
    found = torch.nonzero(second.indices[places] == first.indices).flatten()
    return found, places[found]
