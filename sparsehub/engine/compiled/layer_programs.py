"""Layers of trunks and their branches: compiled where that was faster. One library on disk serves all layers of a stack
that are alike, each loaded with that layer's own weights."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparsehub.engine.compiled.layer_call import LayerCall, template_of
from sparsehub.engine.compiled.layer_graph import targets_of
from sparsehub.engine.compiled.plain_pass import SHORTEST
from sparsehub.engine.compiled.program import Program
from sparsehub.engine.compiled.program_files import (
    LAYER_ARGUMENTS,
    SOURCE,
    SOURCE_ROWS,
    TABLES,
    TOKEN_BLOCKS,
    ProgramFiles,
)
from sparsehub.engine.cost_model import CompiledCurve
from sparsehub.engine.layer_stack import LayerStack
from sparsehub.engine.mixed_forward import MixedBatch
from sparsehub.engine.target_modules import TargetModules
from sparsehub.errors import EngineError

log = logging.getLogger("sparsehub")


@dataclass(frozen=True)
class LayerProgram:
    """The program of one layer."""

    program: Program
    targets: Sequence[int]  # of the layer, which are its rows of the address tables
    shares: bool  # whether it computes once what its input shares

    def tables(self, batch: MixedBatch) -> Tensor:
        """The layer's rows of a batch's address tables, proved. Raises what `MixedBatch.tables` raises."""
        tables, first = batch.tables(), self.targets[0]
        if self.targets == range(first, first + len(self.targets)):
            return tables[first : first + len(self.targets)]
        return tables[list(self.targets)]


@dataclass(frozen=True)
class CompiledLayers:
    """The programs of a stack's layers, and where they are used."""

    targets: TargetModules
    stack: LayerStack
    call: LayerCall
    programs: Mapping[int, LayerProgram]  # by layer; of those that were proved
    trunk: CompiledCurve  # of rows that run on the base weights
    branches: CompiledCurve  # of those that tasks change something for

    def output(
        self, index: int, args: Any, kwargs: Any, batch: MixedBatch, made_of: tuple[Tensor, Tensor] | None
    ) -> Any:
        """What a layer gives for the rows that run now in a batch; None where that is for the layer itself to say.

        made_of: rows that its hidden states are made of, and for each of those which one. Raises `EngineError`.
        """
        own = self.programs.get(index)
        given = self.call.arguments(args, kwargs) if own is not None else None
        if own is None or given is None or (made_of is not None and not own.shares):
            return None
        hidden = given[self.call.hidden]
        source, rows = made_of or (hidden, torch.empty(len(hidden), dtype=torch.int64))
        blocks = batch.segments(hidden.shape[0] * hidden.shape[1]).blocks
        made = {SOURCE: source, SOURCE_ROWS: rows, TABLES: own.tables(batch), TOKEN_BLOCKS: blocks}
        (states,) = own.program({**given, **made}).values()
        return self.stack.given(states)

    def states_of(self, output: Any) -> Tensor:
        """The hidden states of what a layer gives."""
        states: Tensor = output if isinstance(output, Tensor) else output[0]
        return states

    def used(self, hidden: Tensor, *, branches: bool) -> bool:
        """Whether programs are used for such hidden states."""
        rows, length = hidden.shape[:2]
        return length >= SHORTEST and (self.branches if branches else self.trunk).used(rows * length)


class LayerPasses:
    """Runs layers for `TrunkPass`. Not thread-safe: the arena's lock is held around every call."""

    def __init__(self) -> None:
        self.compiled: CompiledLayers | None = None  # until programs were proved; `BackgroundCompiler` sets it

    def output(
        self,
        index: int,
        args: Any,
        kwargs: Any,
        batch: MixedBatch,
        made_of: tuple[Tensor, Tensor] | None = None,
        *,
        branches: bool,
    ) -> Any:
        """`CompiledLayers.output` where programs are used; None elsewhere."""
        compiled = self.compiled
        if compiled is None or not compiled.used(compiled.stack.hidden_of(args, kwargs), branches=branches):
            return None
        try:
            return compiled.output(index, args, kwargs, batch, made_of)
        except EngineError as error:
            log.error("trunks and branches are eager from here on: %s", error)
            self.compiled = None
            return None


def load_layers(files: ProgramFiles, targets: TargetModules, stack: LayerStack, call: LayerCall) -> CompiledLayers:
    """The programs of all layers that are like the one that was compiled, not proved yet. Raises `EngineError`."""
    wanted = (*call.tensors, *LAYER_ARGUMENTS)
    if files.inputs != wanted:
        raise EngineError("a compiled layer takes other tensors", found=files.inputs, expected=wanted)
    alike = _parts(template_of(stack), targets)
    programs: dict[int, LayerProgram] = {}
    for index, layer in enumerate(stack.modules):
        if _parts(layer, targets) == alike:
            inside = set(layer.modules())
            own = [target.index for target in targets.targets if target.module in inside]
            readers = [targets.targets[reader] for reader in stack.readers[index]] if stack.readers else []
            shares = all(reader.base is None for reader in readers)  # a norm there would be computed for every row
            contiguous = range(own[0], own[0] + len(own))
            rows = contiguous if own == [*contiguous] else own
            programs[index] = LayerProgram(Program(files, weights_of(layer)), rows, shares)
    return CompiledLayers(targets, stack, call, programs, CompiledCurve(), CompiledCurve())


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    """All that a program of a module may read, by name."""
    return {**dict(module.named_parameters(remove_duplicate=False)), **dict(module.named_buffers())}


def _parts(layer: nn.Module, targets: TargetModules) -> Any:
    """What two layers must have in common to be one graph: their modules and weights, and which of them are targets."""
    modules = [(name, type(module)) for name, module in layer.named_modules()]
    weights = {name: (weight.shape, weight.dtype) for name, weight in weights_of(layer).items()}
    names = {module: name for name, module in layer.named_modules()}
    own = targets_of(targets, layer)
    return modules, weights, [(names[target.module], target.kind, target.epsilon) for target in own.targets], own.shared
