"""Running one step of text generation: with one task's weights in place, or mixed for many tasks."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sparsehub.engine.arena_manager import ArenaManager
from sparsehub.engine.cost_model import MIXED
from sparsehub.engine.generation.batcher import Batcher
from sparsehub.engine.generation.packing import PackedSpan, Packer
from sparsehub.engine.generation.request import Generation
from sparsehub.engine.generation.sampling import SampledToken
from sparsehub.errors import EngineError
from sparsehub.patch import Patch

# The token is None where the logits are no numbers; the last one is there where log probabilities are wanted.
NextTokens = list[tuple[Generation, int | None, SampledToken | None]]


class ModelRunner:
    """Runs the steps of a `Generator`. It holds the arena's lock for the time of a step; between two of them the model
    loop may use the model. only_mixed: whether no step runs with a task's weights in place, as on quantised ones."""

    def __init__(self, arena: ArenaManager, batcher: Batcher, packer: Packer, *, only_mixed: bool):
        self.batcher, self._only_mixed = batcher, only_mixed
        self._arena, self._packer = arena, packer
        self._failures = arena.failures  # damage that was found before what runs now was begun

    @torch.inference_mode()
    def step(self, mode: str) -> NextTokens:
        """Run what transformers' scheduler chooses of the sequences that were added; their next tokens.

        mode: `mixed` for a mixed step wherever that is possible; otherwise a step of one task runs with its weights in
        place. Raises `EngineError` where weights were found damaged since: the cache may hold what they have made.
        """
        with self._arena.lock:
            if self._arena.failures != self._failures:
                self._failures = self._arena.failures
                raise EngineError("weights in memory were damaged while the text was made", fix="send it again")
            parts = self.batcher.prepare()
            if not parts:
                return []
            tokens = self._run(parts, mode)
            if any(token is None for _, token, _ in tokens):
                self._arena.suspect()
            handles = [part.generation.handle for part in parts if part.generation.handle is not None]
            self._arena.note_active(handles)
            return tokens

    def check_weights(self) -> None:
        """Look at the next weights where it is time."""
        self._arena.check_if_due()

    def rest(self) -> None:
        """Forget the last mixed batch, which holds its tasks' weights: nothing runs."""
        self._packer.forget()
        self._failures = self._arena.failures

    def _run(self, parts: Sequence[PackedSpan], mode: str) -> NextTokens:
        alone = len({part.generation.digest for part in parts}) == 1 and not self._only_mixed
        if alone and not (mode == MIXED and parts[0].adapter is not None):
            self._arena.swap.to(_patch_of(parts[0]))
            return self.batcher.run(parts)
        self._arena.swap.to(None)
        packed = self._packer.pack(parts, self.batcher.padded_rows)
        with packed.batch.on_model():
            return self.batcher.run(parts, packed.baked)


def _patch_of(part: PackedSpan) -> Patch | None:
    handle = part.generation.handle
    if handle is None:
        return None
    assert handle.resident is not None  # it was admitted because its task is resident, and references it
    return handle.resident.patch
