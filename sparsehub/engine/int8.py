"""An int8 base: the products of a backbone's Linear maps with weights of 8 bits, for mixed batches on a CPU.

Nothing writes such weights, so every row runs mixed: the base product in int8, its task's sparse part in float32.
Embeddings, norms, heads and deltas stay in float. The float weights stay in the arena, where tasks are made of them.
"""

from __future__ import annotations

from torch import nn

from sparsehub import kernels
from sparsehub.backbone import Backbone
from sparsehub.engine.int8_matrix import Int8Base, Int8Matrix
from sparsehub.engine.module_forwards import find_gelus
from sparsehub.engine.target_modules import LINEAR, TargetModules


def int8_base(backbone: Backbone, targets: TargetModules, allowed: bool) -> Int8Base:
    """The int8 weights of a backbone; the arena must hold the base weights."""
    matrices = {index: Int8Matrix(linear) for index, linear in int8_linears(targets).items()}
    return Int8Base(matrices, allowed, find_gelus(backbone.module))


def int8_linears(targets: TargetModules) -> dict[int, nn.Linear]:
    """The maps that an int8 base has 8 bits for, by target index; one whose sums would not fit is left out."""
    linears = {t.index: t.module for t in targets.targets if t.kind == LINEAR}
    return {
        index: module
        for index, module in linears.items()
        if isinstance(module, nn.Linear) and module.in_features <= kernels.MOST_INPUTS
    }
