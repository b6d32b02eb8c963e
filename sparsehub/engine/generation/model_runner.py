"""One step, in the way that its tasks want: in place for one of them, mixed for many."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from sparsehub.engine.arena_manager import ArenaManager
from sparsehub.engine.cost_model import MIXED
from sparsehub.engine.generation.batcher import Batcher
from sparsehub.engine.generation.packing import PackedSpan, Packer
from sparsehub.engine.generation.request import Generation
from sparsehub.engine.generation.sampling import SampledToken
from sparsehub.patch import Patch

Spoken = list[tuple[Generation, int, SampledToken | None]]


class Stepper:
    """Holds the arena's lock for the time of a step; between two of them others may use the model."""

    def __init__(self, arena: ArenaManager, batcher: Batcher, packer: Packer, mode: Callable[[], str]):
        self.batcher = batcher
        self._arena, self._packer, self._mode = arena, packer, mode

    @torch.inference_mode()
    def step(self) -> Spoken:
        """Run what transformers chooses of the sequences that were let in; the tokens that they say."""
        with self._arena.lock:
            parts = self.batcher.prepare()
            if not parts:
                return []
            spoken = self._run(parts)
            handles = [part.generation.handle for part in parts if part.generation.handle is not None]
            self._arena.note_active(handles)
            return spoken

    def check_weights(self) -> None:
        """Look at a part of the base weights, where it is time."""
        self._arena.check_if_due()

    def rest(self) -> None:
        """Nothing runs: hold nothing."""
        self._packer.forget()

    def _run(self, parts: Sequence[PackedSpan]) -> Spoken:
        alone = len({part.generation.digest for part in parts}) == 1
        if alone and not (self._mode() == MIXED and parts[0].adapter is not None):
            self._arena.swap.to(_patch_of(parts[0]))
            return self.batcher.run(parts)
        self._arena.swap.to(None)
        with self._packer.pack(parts).on_model():
            return self.batcher.run(parts)


def _patch_of(part: PackedSpan) -> Patch | None:
    handle = part.generation.handle
    if handle is None:
        return None
    assert handle.resident is not None  # it was let in because its task is there, and it holds it
    return handle.resident.patch
