"""A pass of many tasks' rows on the base weights: compiled where that was faster, else transformers' own forward."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from typing import Any

from torch import Tensor

from sparsehub.backbone import Backbone
from sparsehub.engine.compiled.plain_pass import CompiledPass
from sparsehub.engine.compiled.program_files import ROW_BLOCKS, TABLES, TOKEN_BLOCKS
from sparsehub.engine.mixed_forward import MixedBatch
from sparsehub.engine.one_token import OneToken
from sparsehub.errors import EngineError

log = logging.getLogger("sparsehub")


class MixedPass:
    """Runs mixed batches for `BatchRunner`. The arena holds the base weights. Not thread-safe: the arena's lock is held
    around every call."""

    def __init__(self, backbone: Backbone):
        self._backbone = backbone
        self.compiled: CompiledPass | None = None  # until a program was proved; `BackgroundCompiler` sets it

    def takes(self, inputs: dict[str, Tensor]) -> bool:
        """Whether a compiled pass is used for these inputs."""
        return self.compiled is not None and self.compiled.takes(inputs)

    def __call__(self, batch: MixedBatch, inputs: dict[str, Tensor], reads: OneToken | None = None) -> Any:
        """What the base model returns for a batch. reads: which token of each row is read, where it is one; a compiled
        pass gives all of them."""
        compiled = self.compiled
        if compiled is not None and self.takes(inputs):
            given = {**inputs, **arguments_of(batch, inputs["input_ids"].shape[1])}
            try:
                return compiled.result(**compiled.program(given))
            except EngineError as error:
                log.error("mixed passes are eager from here on: %s", error)
                self.compiled = None
        with ExitStack() as stack:
            stack.enter_context(batch.on_model())
            if reads is not None:
                stack.enter_context(reads.on_model())
            return self._backbone.module(**inputs)


def arguments_of(batch: MixedBatch, length: int) -> dict[str, Tensor]:
    """What a mixed program takes of a batch beside the base model's inputs, which have so many tokens a row. Raises
    `EngineError` where the batch's address tables are damaged."""
    return {
        TABLES: batch.tables(),
        TOKEN_BLOCKS: batch.segments(batch.rows * length).blocks,
        ROW_BLOCKS: batch.segments(batch.rows).blocks,
    }
