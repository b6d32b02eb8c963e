"""A mixed pass as a graph: the backbone with the ops of `kernels/library.py` in place of its target modules.

The tasks are no part of the graph. It takes their address tables and blocks of tokens as tensors, so one graph serves
any tasks and any split of the rows; a module that no task changes goes through the same op.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from sparsehub.engine.module_forwards import with_forwards
from sparsehub.engine.target_modules import (
    CONV1D,
    EMBEDDING,
    LAYER_NORM,
    LINEAR,
    RMS_NORM,
    TargetModule,
    TargetModules,
)
from sparsehub.errors import EngineError
from sparsehub.kernels import library
from sparsehub.kernels.sparse import ADDRESSES

# Sizes of an example of `ARGUMENTS`, all different; they are free in the program.
_SLOTS, _BLOCKS, _GROUPS = 6, 7, 11


def why_no_graph(targets: TargetModules) -> str | None:
    """Why mixed passes of a backbone cannot be a graph; None where they can."""
    if not targets.uses:
        return "nothing in the backbone can be mixed"
    for target in targets.targets:
        if target.kind == RMS_NORM and target.epsilon is None:
            return f"{target.name} ({type(target.module).__name__}) is a norm of its own kind"
    return None


class MixedGraph:
    """What the target modules compute while a mixed pass is exported; the compiler makes one per graph.

    int8: the targets that have weights of 8 bits, on an int8 base.
    """

    def __init__(self, targets: TargetModules, int8: Collection[int] = ()):
        self.targets, self._int8 = targets, int8
        self._rows: Any = 0  # sequences
        self._tables, self._blocks = torch.empty(0), dict[int, Tensor]()
        self._done: dict[int, tuple[Tensor, Tensor]] = {}  # by target: an input, and its output, computed in advance

    def begin(self, rows: Any, tables: Tensor, token_blocks: Tensor, row_blocks: Tensor) -> None:
        """Take the arguments of a pass of so many sequences."""
        self._rows, self._tables = rows, tables
        self._blocks = {2: token_blocks, 1: row_blocks}
        self._done.clear()

    def on_model(self) -> AbstractContextManager[None]:
        """Inside, the backbone's target modules are those ops."""
        targets = self.targets.targets
        return with_forwards({t.module: functools.partial(_FORWARDS[t.kind], self, t) for t in targets})

    def blocks_of(self, target: TargetModule, leading: int) -> Tensor:
        """The blocks of a tensor with so many dimensions before its width: sequences and tokens, or sequences."""
        if leading not in self._blocks:
            raise EngineError(f"{target.name} is called with {leading + 1} dimensions, which no graph is made for")
        return self._blocks[leading]

    def linear(self, target: TargetModule, x: Tensor) -> Tensor:
        """Linear and Conv1D; maps of one size that are called with the same input are computed together."""
        given, y = self._done.pop(target.index, (None, None))
        if y is not None and given is x:
            return y
        targets = [target, *(other for other in self._after(target) if _alike(target.module, other.module))]
        first, *others = self._products(targets, x).unbind(0)
        self._done.update((other.index, (x, its)) for other, its in zip(targets[1:], others, strict=True))
        return first

    def _products(self, targets: Sequence[TargetModule], x: Tensor) -> Tensor:
        blocks, indices = self.blocks_of(targets[0], x.ndim - 1), [each.index for each in targets]
        weights, biases, transposed = parameters_of(targets)
        if targets[0].index in self._int8:  # then all of one size are
            module: Any = targets[0].module
            return library.int8_linear(x.contiguous(), biases, self._tables, blocks, indices, module.out_features)
        return library.mixed_linear(x.contiguous(), weights, biases, self._tables, blocks, indices, transposed)

    def _after(self, target: TargetModule) -> list[TargetModule]:
        return [self.targets.targets[index] for index in self.targets.after.get(target.index, ())]

    def embedding(self, target: TargetModule, ids: Tensor) -> Tensor:
        """Embedding. Ids that all rows share are looked up for each row, since the changes differ."""
        module: Any = target.module
        if isinstance(ids.shape[0], int) and ids.shape[0] == 1:
            ids = ids.expand(self._rows, *ids.shape[1:])
        blocks = self.blocks_of(target, ids.ndim)
        return library.mixed_embedding(ids.long().contiguous(), module.weight, self._tables, blocks, target.index)

    def norm(self, target: TargetModule, x: Tensor) -> Tensor:
        """LayerNorm and RMSNorm."""
        module: Any = target.module
        epsilon = module.eps if target.kind == LAYER_NORM else target.epsilon
        blocks = self.blocks_of(target, x.ndim - 1)
        return library.mixed_norm(
            x.contiguous(), self._tables, blocks, target.index, epsilon, target.kind == LAYER_NORM
        )


def example_batch(targets: int) -> tuple[tuple[Tensor, ...], tuple[Any, ...]]:
    """`ARGUMENTS` by their shapes alone, since nothing reads them while a graph is made, and which sizes are free."""
    shapes = ((targets, _SLOTS, ADDRESSES), (_BLOCKS, 3), (_GROUPS, 3))
    axes = {1: torch.export.Dim("slots")}, {0: torch.export.Dim("blocks")}, {0: torch.export.Dim("groups")}
    return tuple(torch.zeros(shape, dtype=torch.int64) for shape in shapes), axes


def parameters_of(targets: Sequence[TargetModule]) -> tuple[list[Tensor], list[Tensor], bool]:
    """The weights and biases of linear targets of one size, and whether their weights are [in, out]."""
    modules: list[Any] = [each.module for each in targets]
    biases = [module.bias for module in modules if module.bias is not None]
    return [module.weight for module in modules], biases, targets[0].kind == CONV1D


def _alike(module: Any, other: Any) -> bool:
    return module.weight.shape == other.weight.shape and (module.bias is None) == (other.bias is None)


_FORWARDS: dict[str, Callable[[MixedGraph, TargetModule, Tensor], Tensor]] = {
    LINEAR: MixedGraph.linear,
    CONV1D: MixedGraph.linear,
    EMBEDDING: MixedGraph.embedding,
    LAYER_NORM: MixedGraph.norm,
    RMS_NORM: MixedGraph.norm,
}
