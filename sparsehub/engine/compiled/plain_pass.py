"""A pass of one task's rows, or of the plain backbone's: compiled where that was faster, else transformers' own."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sparsehub.backbone import Backbone
from sparsehub.engine.compiled.program import Program
from sparsehub.engine.compiled.program_files import ARGUMENTS
from sparsehub.engine.cost_model import CompiledCurve
from sparsehub.errors import EngineError

SHORTEST = 2  # tokens of a row; programs are made for no fewer
log = logging.getLogger("sparsehub")


@dataclass(frozen=True)
class CompiledPass:
    """A program that was proved, and where it is used."""

    program: Program
    result: Any  # the class of what the base model returns, by tensors' names
    curve: CompiledCurve

    def takes(self, inputs: dict[str, Tensor]) -> bool:
        """Whether the program is used for these inputs."""
        ids, wanted = inputs["input_ids"], {*self.program.inputs} - {*ARGUMENTS}
        return ids.shape[1] >= SHORTEST and inputs.keys() == wanted and self.curve.used(ids.numel())


class PlainPass:
    """Runs the unchanged forward on whatever weights are in the arena, for `BatchRunner`. Not thread-safe: the arena's
    lock is held around every call."""

    def __init__(self, backbone: Backbone):
        self._backbone = backbone
        self.compiled: CompiledPass | None = None  # until a program was proved; `BackgroundCompiler` sets it

    def takes(self, inputs: dict[str, Tensor]) -> bool:
        """Whether a compiled pass is used for these inputs."""
        return self.compiled is not None and self.compiled.takes(inputs)

    def __call__(self, inputs: dict[str, Tensor]) -> Any:
        """What the base model returns for a batch."""
        compiled = self.compiled
        if compiled is not None and self.takes(inputs):
            try:
                return compiled.result(**compiled.program(inputs))
            except EngineError as error:
                log.error("passes are eager from here on: %s", error)
                self.compiled = None
        return self._backbone.module(**inputs)
