"""A packed base: a backbone whose Linear maps are multiplied in int8, fp8 or nf4, for mixed batches on a GPU.

Nothing writes packed weights, so every row runs mixed: the base product by a library, its task's sparse part in float.
Embeddings, norms, biases, the output layer, heads and deltas stay in float. On a GPU the arena, of which tasks are made
and damage is mended, moves to host memory: the float weights of packed maps are in the GPU's memory no more.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from sparsehub.backbone import Arena, Backbone
from sparsehub.engine.packed_matrix import PackedBase, PackedMatrix
from sparsehub.engine.target_modules import CONV1D, LINEAR, TargetModule, TargetModules


@torch.no_grad()
def packed_base(backbone: Backbone, targets: TargetModules, weights: str, allowed: bool) -> PackedBase:
    """Pack the maps of a backbone, and move its arena to host memory where it is on a GPU. The arena holds the base
    weights, and nothing else uses it yet; raises `MissingExtraError`."""
    arena, device = backbone.arena, backbone.device
    chosen = _chosen(backbone, targets)
    matrices = {
        target.index: PackedMatrix(weights, target.module, functools.partial(_weight, arena, name, target, device))
        for name, target in chosen.items()
    }
    copies = {} if stays(device) else _leave_arena(backbone, targets, set(chosen))
    return PackedBase(weights, matrices, allowed, arena, copies)


def stays(device: torch.device) -> bool:
    """Whether the arena stays where passes run: in host memory there is no other place for it."""
    return device.type == "cpu"


def _chosen(backbone: Backbone, targets: TargetModules) -> dict[str, TargetModule]:
    """The maps that are packed, by the arena names of their weights: all but the output layer, and those that share a
    weight with another module."""
    output = None if backbone.language_model is None else backbone.language_model.get_output_embeddings()  # type: ignore[operator]
    names = {slot: name for name, slot in backbone.arena.slots.items()}
    return {
        names[slot]: uses[0][0]
        for slot, uses in targets.uses.items()
        if len(uses) == 1 and uses[0][1] == "weight" and uses[0][0].kind in (LINEAR, CONV1D)
        if slot not in targets.others and uses[0][0].module is not output
    }


def _weight(arena: Arena, name: str, target: TargetModule, device: torch.device) -> Tensor:
    """A map's float weight as [out, in]."""
    weight = arena.view(name).to(device)
    return weight.t().contiguous() if target.kind == CONV1D else weight


def _leave_arena(backbone: Backbone, targets: TargetModules, packed: set[str]) -> dict[str, nn.Parameter]:
    """Move the arena to host memory. Parameters get memory of their own where they are, those of packed maps none;
    returns the former."""
    slots = backbone.arena.slots
    gone = {id(parameter) for name, parameter in backbone.parameters.items() if name in packed}
    copies: dict[str, nn.Parameter] = {}
    done: set[int] = set()
    for name, parameter in backbone.parameters.items():
        if name in slots and id(parameter) not in done:
            done.add(id(parameter))
            if id(parameter) in gone:
                parameter.data = parameter.data.new_empty(0)
            else:
                parameter.data = parameter.data.clone()
                copies[name] = parameter
    for target in targets.targets:
        target.forget_matrix()
    backbone.arena.move_to_host()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # for the key-value cache
    return copies
