"""What a backbone's Linear maps multiply by: float weights, or quantised ones of one of a few kinds; `Engine` asks here
for its target modules."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from sparsehub.backbone import Backbone
from sparsehub.engine.int8 import int8_base
from sparsehub.engine.mixed_forward import MixedBatch
from sparsehub.engine.mixing_check import checked_targets
from sparsehub.engine.packed import packed_base
from sparsehub.engine.target_modules import TargetModules
from sparsehub.engine.trunk_check import with_layers
from sparsehub.errors import UsageError

FLOAT, INT8 = "float", "int8"
WEIGHTS = (FLOAT, INT8, "fp8", "nf4")


def prepared_targets(backbone: Backbone, weights: str, allow_quantised: bool) -> TargetModules:
    """The modules that an engine's mixed batches can change, proved on the float weights, with quantised ones where
    `weights` asks for them. The arena must hold the base weights; on a GPU it moves to host memory then, so nothing
    else may know it yet. Raises `UsageError` where there can be none, and `MissingExtraError`."""
    if weights not in WEIGHTS:
        raise UsageError("unknown kind of weights", found=weights, expected=", ".join(WEIGHTS))
    targets = with_layers(backbone, checked_targets(backbone))
    if weights == FLOAT:
        return targets
    if not targets.uses:
        raise UsageError(f"{backbone.checkpoint.id} cannot run on {weights} weights: nothing in it can be mixed")
    only_mixed = f"the backbone's weights are {weights}, and every row runs mixed"
    found = dataclasses.replace(targets, layers=None, why_no_trunk=only_mixed)
    if weights == INT8 and _has_own_kernels(backbone):
        return dataclasses.replace(found, int8=int8_base(backbone, found, allow_quantised))
    return dataclasses.replace(found, packed=packed_base(backbone, found, weights, allow_quantised))


def _has_own_kernels(backbone: Backbone) -> bool:
    """Whether int8 weights are multiplied by our own kernels: for encoders in float32 on a CPU."""
    plain = backbone.device.type == "cpu" and backbone.dtype == torch.float32
    return plain and backbone.language_model is None


@contextmanager
def on_base(targets: TargetModules, rows: int) -> Iterator[None]:
    """Inside, a pass of so many rows computes with the base weights alone, which are in no module where they are
    packed. Calibration measures so."""
    if targets.packed is None:
        yield
        return
    with MixedBatch(targets, [None], [(0, 0, rows)]).on_model():
        yield
