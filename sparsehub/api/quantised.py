"""A task on quantised weights: what `sparsehub evaluate --weights` measures, by the passes that an endpoint runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sparsehub.engine.adapter_weights import make_adapter_weights
from sparsehub.engine.base_weights import prepared_targets
from sparsehub.engine.mixed_forward import MixedBatch
from sparsehub.errors import BackboneMismatchError
from sparsehub.package.materialize import headed_model_of, native_dtype
from sparsehub.patch import make_patch, refuse_overflow
from sparsehub.training.evaluation import Outputs, outputs_of

if TYPE_CHECKING:
    from sparsehub.backbone import Checkpoint
    from sparsehub.package import Package
    from sparsehub.training.data import Split

ALL_ROWS = ((0, 0, 1),)  # every row of a pass is the one task's


def quantised_outputs(package: Package, split: Split, checkpoint: Checkpoint, weights: str) -> Outputs:
    """What a package gives for the rows of a split where the backbone's weights are quantised and its own change is
    added in float, as in an endpoint with `--weights`.

    Raises what `headed_model_of` and `prepared_targets` raise, and `BackboneMismatchError` where the change cannot run
    beside quantised weights.
    """
    from sparsehub.backbone.tokenizer import load_tokenizer

    task_model = headed_model_of(package, checkpoint, dtype=native_dtype(package))
    backbone = task_model.backbone
    targets = prepared_targets(backbone, weights, allow_quantised=True)
    patch = make_patch(backbone, package.delta)
    refuse_overflow(backbone.arena, patch)
    adapter = make_adapter_weights(targets, backbone.arena, patch)
    if isinstance(adapter, str):
        manifest = package.manifest
        raise BackboneMismatchError(f"{manifest.name} cannot run on {weights} weights", found=adapter)
    with MixedBatch(targets, [adapter], ALL_ROWS).on_model():
        return outputs_of(task_model.model, package.manifest.task, load_tokenizer(checkpoint), split)
