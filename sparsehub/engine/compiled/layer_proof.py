"""The proof of compiled layers: each gives what the layer itself gives, before and after the arena changes; and the
measurement of where they are faster."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sparsehub.backbone import Backbone
from sparsehub.engine.compiled.layer_call import with_leaves
from sparsehub.engine.compiled.layer_programs import CompiledLayers
from sparsehub.engine.compiled.proof import TOLERANCE, TrialTasks, sample_of
from sparsehub.engine.mixed_forward import MixedBatch
from sparsehub.engine.mixing_check import loudly_changed
from sparsehub.engine.module_forwards import with_forwards

_INPUTS = ("input_ids", "attention_mask")


@torch.inference_mode()
def right_layers(backbone: Backbone, layers: CompiledLayers, rows: int, length: int, tasks: TrialTasks) -> set[int]:
    """The layers whose programs give what they give themselves for a batch of so many rows and tokens, on whatever
    weights are in the arena: of rows of their own, and of rows that are made of fewer ones."""
    given = sample_of(backbone, _INPUTS, rows, length)
    batch, right = tasks.batch(rows), set(layers.programs)
    real = given["attention_mask"].bool()

    def watch(index: int, *args: Any, **kwargs: Any) -> Any:
        own = _forward(layers, index, args, kwargs)
        if index in right and not _agree(layers, index, (args, kwargs), batch, real):
            right.discard(index)
        return own

    _run(backbone, layers, batch, given, watch)
    return right


def right_changed(backbone: Backbone, layers: CompiledLayers, tasks: TrialTasks) -> set[int]:
    """`right_layers` with a large change in every parameter, and without it again. The arena must hold the base
    weights, and holds them again afterwards."""
    with loudly_changed(backbone):
        right = right_layers(backbone, layers, 2, 5, tasks)
    return right & right_layers(backbone, layers, 1, 7, tasks)


@torch.inference_mode()
def measure_layers(
    backbone: Backbone, layers: CompiledLayers, rows: int, length: int, tasks: TrialTasks | None
) -> tuple[float, float]:
    """Seconds of all layers compiled, and eager, in turn. tasks: of rows of branches, None for rows of the trunk."""
    given = sample_of(backbone, _INPUTS, rows, length)
    batch = MixedBatch(layers.targets, [None], [(0, 0, rows)]) if tasks is None else tasks.batch(rows)
    seconds = {True: 0.0, False: 0.0}  # by whether it is compiled

    def timed(index: int, *args: Any, **kwargs: Any) -> Any:
        output: Any = None
        for compiled in (True, False) if index % 2 else (False, True):  # what comes second finds the weights in a cache
            start = time.perf_counter()
            made = (
                layers.output(index, args, kwargs, batch, None) if compiled else _forward(layers, index, args, kwargs)
            )
            seconds[compiled] += time.perf_counter() - start
            output = output if compiled else made
        return output

    _run(backbone, layers, batch, given, timed)
    return seconds[True], seconds[False]


def _run(
    backbone: Backbone, layers: CompiledLayers, batch: MixedBatch, given: dict[str, Tensor], forward: Callable[..., Any]
) -> None:
    """A pass in which the layers that have programs run by `forward`."""
    modules = {layers.stack.modules[index]: functools.partial(forward, index) for index in layers.programs}
    with batch.on_model(), with_forwards(modules):
        backbone.module(**given)


def _forward(layers: CompiledLayers, index: int, args: Any, kwargs: Any) -> Any:
    module: nn.Module = layers.stack.modules[index]
    return type(module).forward(module, *args, **kwargs)


def _agree(layers: CompiledLayers, index: int, called: Any, batch: MixedBatch, real: Tensor) -> bool:
    """Whether a layer's program gives what the layer gives. real: [rows, tokens], which tokens are no padding."""
    hidden = layers.stack.hidden_of(*called)
    few = hidden[: (len(hidden) + 1) // 2].contiguous()
    rows = torch.arange(len(hidden)) % len(few)
    grown = with_leaves(called, {layers.call.hidden: few[rows]})
    calls: list[tuple[Any, tuple[Tensor, Tensor] | None]] = [(called, None)]
    if layers.programs[index].shares and len(few) < len(hidden):
        calls.append((grown, (few, rows)))
    for (args, kwargs), made_of in calls:
        found = layers.output(index, args, kwargs, batch, made_of)
        if found is None:
            return False
        expected = layers.states_of(_forward(layers, index, args, kwargs))
        its = layers.states_of(found)
        allowed = TOLERANCE * max(1.0, float(expected[real].abs().max()))
        if its.shape != expected.shape or not bool((its - expected)[real].abs().max() <= allowed):  # NaN is not
            return False
    return True
