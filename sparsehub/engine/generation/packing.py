"""Packing: the sequences that transformers has packed into one row of tokens, as a mixed batch of their tasks."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from sparsehub.engine.adapter_weights import AdapterWeights
from sparsehub.engine.generation.request import Generation
from sparsehub.engine.generation.static_memory import StaticMemory
from sparsehub.engine.mixed_forward import MixedBatch
from sparsehub.engine.target_modules import TargetModules
from sparsehub.kernels.sparse import bounds_of


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


@dataclass(frozen=True)
class PackedBatch:
    """A step's mixed batch, and what is baked into its launches beside the model's inputs; None where all may be."""

    batch: MixedBatch
    baked: Hashable | None = None


class Packer:
    """Makes the mixed batches of `ModelRunner`. The last one is kept, since most steps are like the one before.

    rows: texts of a step, at most.
    """

    def __init__(self, targets: TargetModules, rows: int):
        self._targets, self._rows = targets, rows
        self._last: tuple[tuple[object, ...], PackedBatch] | None = None
        self._memory: StaticMemory | None = None  # of decode steps that may be graphs

    def pack(self, parts: Sequence[PackedSpan], padded_rows: int = 0) -> PackedBatch:
        """The mixed batch of a step. parts: in the order of their tokens; one of them has an adapter, but on quantised
        weights none need have; padded_rows: tokens of a decode step that is padded, 0 for any other step."""
        key = (padded_rows, *((part.generation.id, part.tokens, part.is_sampled) for part in parts))
        if self._last is None or self._last[0] != key:
            self._last = None  # what is in the static memory is overwritten
            made = self._static(parts, padded_rows) if padded_rows else PackedBatch(_mixed(self._targets, parts))
            self._last = (key, made)
        return self._last[1]

    def forget(self) -> None:
        """Drop the last batch: it keeps its tasks' weights in memory."""
        self._last = None

    def _static(self, parts: Sequence[PackedSpan], rows: int) -> PackedBatch:
        if self._memory is None:
            self._memory = StaticMemory(self._targets, self._rows)
        groups = _by_task(parts)
        return PackedBatch(*self._memory.batch([group[0].adapter for group in groups], list(map(len, groups)), rows))


def _mixed(targets: TargetModules, parts: Sequence[PackedSpan]) -> MixedBatch:
    groups = _by_task(parts)
    tokens = [sum(part.tokens for part in group) for group in groups]
    adapters = [group[0].adapter for group in groups]
    # One row of each sequence goes on to the output layer; where it is not sampled, nothing looks at it.
    return MixedBatch(targets, adapters, bounds_of(tokens), packed=True, outputs=bounds_of(map(len, groups)))


def _by_task(parts: Sequence[PackedSpan]) -> list[list[PackedSpan]]:
    """Neighbours of one task together."""
    groups: list[list[PackedSpan]] = []
    for part in parts:
        if groups and groups[-1][0].generation.digest == part.generation.digest:
            groups[-1].append(part)
        else:
            groups.append([part])
    return groups
