"""One layer of a mixed pass as a graph, for trunks and their branches; the compiler exports it.

All layers of a stack are alike, so one graph serves each of them, with that layer's weights and its rows of the address
tables. At a branch point it computes what the layer's input shares once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sparsehub.engine.compiled.layer_call import (
    ROWS,
    TOKENS,
    LayerCall,
    template_of,
    watch_layer,
    watched_stack,
    with_leaves,
)
from sparsehub.engine.compiled.mixed_graph import MixedGraph, example_batch, parameters_of
from sparsehub.engine.compiled.plain_graph import gelus_as_ops
from sparsehub.engine.compiled.program_files import LAYER_ARGUMENTS
from sparsehub.engine.layer_stack import tensors_of
from sparsehub.engine.target_modules import TargetModule, TargetModules
from sparsehub.errors import EngineError
from sparsehub.kernels import library

_SOURCES = 2  # rows that those of the example are made of


class LayerGraph(MixedGraph):
    """What the target modules of a layer compute while it is exported. targets: of that layer alone (`targets_of`)."""

    def begin_layer(self, hidden: Tensor, source: Tensor, rows: Tensor, tables: Tensor, token_blocks: Tensor) -> None:
        """Take the arguments of a call: hidden = source[rows], or `source` is `hidden`."""
        self._tables, self._blocks = tables, {2: token_blocks}
        self._input = hidden, source, rows
        self._done.clear()

    def _products(self, targets: Sequence[TargetModule], x: Tensor) -> Tensor:
        hidden, source, rows = self._input
        if x is not hidden:
            return super()._products(targets, x)
        blocks, indices = self.blocks_of(targets[0], x.ndim - 1), [each.index for each in targets]
        weights, biases, transposed = parameters_of(targets)
        return library.shared_linear(
            x.contiguous(), source.contiguous(), rows, weights, biases, self._tables, blocks, indices, transposed
        )


def targets_of(targets: TargetModules, layer: nn.Module) -> TargetModules:
    """The targets of one layer, numbered from 0 on."""
    inside = set(layer.modules())
    own = [target for target in targets.targets if target.module in inside]
    number = {target.index: place for place, target in enumerate(own)}
    shared = {
        number[first]: tuple(number[other] for other in others)
        for first, others in targets.shared.items()
        if first in number
    }
    numbered = tuple(dataclasses.replace(target, index=number[target.index]) for target in own)
    return dataclasses.replace(targets, targets=numbered, shared=shared)


class _Layer(nn.Module):
    """A layer whose arguments are tensors in a fixed order, and whose result is its hidden states."""

    def __init__(self, module: nn.Module, graph: LayerGraph, call: LayerCall, example: Any):
        super().__init__()
        self.module, self.graph, self.call, self.example = module, graph, call, example

    def forward(self, *tensors: Tensor) -> Tensor:
        own = dict(zip(self.call.tensors, tensors, strict=False))
        self.graph.begin_layer(own[self.call.hidden], *tensors[len(own) :])
        args, kwargs = with_leaves(self.example, own)
        found = [tensor for _, tensor in tensors_of(self.module(*args, **kwargs))]
        if len(found) != 1:
            raise EngineError("layers give more than hidden states", found=f"{len(found)} tensors")
        return found[0]


def export_layer(module: Any, targets: TargetModules, max_tokens: int) -> tuple[Any, list[str]]:
    """The graph of a base model's layers for any number of rows and tokens, and the names of its arguments. Raises
    `EngineError` where its layers have none."""
    stack = watched_stack(module)
    call, example = watch_layer(module, stack)
    layer, given = template_of(stack), call.arguments(*example)
    assert given is not None  # it was watched
    graph = LayerGraph(targets_of(targets, layer))
    states = given[call.hidden]
    made_of = states[:_SOURCES].clone(), torch.zeros(len(states), dtype=torch.int64)
    batch, batch_axes = example_batch(len(graph.targets.targets))
    free = {ROWS: torch.export.Dim(ROWS), TOKENS: torch.export.Dim(TOKENS, max=max_tokens)}
    own = [{i: free[str(size)] for i, size in enumerate(sizes) if size in free} for sizes, _ in call.tensors.values()]
    axes = (*own, {0: torch.export.Dim("sources"), 1: free[TOKENS]}, {0: free[ROWS]}, *batch_axes[:2])
    with torch.no_grad(), graph.on_model(), gelus_as_ops(layer):
        model = _Layer(layer, graph, call, example)
        arguments = (*given.values(), *made_of, *batch[:2])
        program = torch.export.export(model, arguments, dynamic_shapes=(axes,), strict=False)
    return program, [*call.tensors, *LAYER_ARGUMENTS]
