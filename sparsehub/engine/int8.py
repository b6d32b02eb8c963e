"""An int8 base: the products of a backbone's Linear maps with weights of 8 bits, for mixed batches on a CPU.

Nothing writes such weights, so every row runs mixed: the base product in int8, its task's sparse part in float32.
Embeddings, norms, heads and deltas stay in float. The float weights stay in the arena, where tasks are made of them.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from sparsehub import kernels
from sparsehub.backbone import Backbone
from sparsehub.engine.int8_matrix import Int8Base, Int8Matrix
from sparsehub.engine.mixing_check import checked_targets
from sparsehub.engine.module_forwards import find_gelus
from sparsehub.engine.target_modules import LINEAR, TargetModules
from sparsehub.engine.trunk_check import with_layers
from sparsehub.errors import UsageError

FLOAT, INT8 = "float", "int8"
WEIGHTS = (FLOAT, INT8)
ONLY_MIXED = "the backbone's weights are int8, and every row runs mixed"


def prepared_targets(backbone: Backbone, weights: str, allow_quantised: bool) -> TargetModules:
    """The modules that an engine's mixed batches can change, proved on the float weights, with int8 ones where
    `weights` asks for them. The arena must hold the base weights. Raises `UsageError` where there can be none."""
    if weights not in WEIGHTS:
        raise UsageError("unknown kind of weights", found=weights, expected=", ".join(WEIGHTS))
    if weights == INT8:
        _refuse_unsuited(backbone)
    targets = with_layers(backbone, checked_targets(backbone))
    if weights == FLOAT:
        return targets
    if not targets.uses:
        raise UsageError(f"{backbone.checkpoint.id} cannot run on int8 weights: nothing in it can be mixed")
    matrices = {index: Int8Matrix(linear) for index, linear in int8_linears(targets).items()}
    base = Int8Base(matrices, allow_quantised, find_gelus(backbone.module))
    return dataclasses.replace(targets, int8=base, layers=None, why_no_trunk=ONLY_MIXED)


def int8_linears(targets: TargetModules) -> dict[int, nn.Linear]:
    """The maps that an int8 base has 8 bits for, by target index; one whose sums would not fit is left out."""
    linears = {t.index: t.module for t in targets.targets if t.kind == LINEAR}
    return {
        index: module
        for index, module in linears.items()
        if isinstance(module, nn.Linear) and module.in_features <= kernels.MOST_INPUTS
    }


def _refuse_unsuited(backbone: Backbone) -> None:
    if backbone.device.type != "cpu" or backbone.dtype != torch.float32:
        found = f"{backbone.dtype} on {backbone.device.type}".removeprefix("torch.")
        raise UsageError("int8 weights are for a CPU and dtype float32", found=found)
    if backbone.language_model is not None:
        raise UsageError(f"int8 weights are for encoders; {backbone.checkpoint.id} generates text")
