"""Packing: the sequences that transformers has packed into one row of tokens, as a mixed batch of their tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sparsehub.engine.adapter_weights import AdapterWeights
from sparsehub.engine.generation.request import Generation
from sparsehub.engine.mixed_forward import Bounds, MixedBatch
from sparsehub.engine.target_modules import TargetModules


@dataclass(frozen=True)
class PackedSpan:
    """One text's tokens in a step."""

    generation: Generation
    tokens: int
    is_sampled: (
        bool  # whether they give the next token; not where a prompt is split, which only a step's last one can be
    )

    @property
    def adapter(self) -> AdapterWeights | None:
        """What its task changes in a mixed step; None for the plain backbone."""
        handle = self.generation.handle
        return handle.resident.adapter if handle is not None and handle.resident is not None else None


class Packer:
    """Makes the mixed batches of `ModelRunner`. The last one is kept, since most steps are like the one before."""

    def __init__(self, targets: TargetModules):
        self._targets = targets
        self._last: tuple[tuple[object, ...], MixedBatch] | None = None

    def pack(self, parts: Sequence[PackedSpan]) -> MixedBatch:
        """The mixed batch of a step. parts: in the order of their tokens; one of them has an adapter, but on quantised
        weights none need have."""
        key = tuple((part.generation.id, part.tokens, part.is_sampled) for part in parts)
        if self._last is None or self._last[0] != key:
            self._last = (key, _mixed(self._targets, parts))
        return self._last[1]

    def forget(self) -> None:
        """Drop the last batch: it keeps its tasks' weights in memory."""
        self._last = None


def _mixed(targets: TargetModules, parts: Sequence[PackedSpan]) -> MixedBatch:
    groups: list[list[PackedSpan]] = []
    for part in parts:
        if groups and groups[-1][0].generation.digest == part.generation.digest:
            groups[-1].append(part)
        else:
            groups.append([part])
    tokens = [sum(part.tokens for part in group) for group in groups]
    adapters = [group[0].adapter for group in groups]
    # One row of each sequence goes on to the output layer; where it is not sampled, nothing looks at it.
    return MixedBatch(
        targets, adapters, _bounds(tokens), packed=True, outputs=_bounds([len(group) for group in groups])
    )


def _bounds(counts: Sequence[int]) -> Bounds:
    """(slot, first row, row after the last) of each group."""
    bounds, start = [], 0
    for slot, count in enumerate(counts):
        bounds.append((slot, start, start + count))
        start += count
    return bounds
