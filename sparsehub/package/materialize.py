"""Turns a package and its backbone into a plain checkpoint, which loads without sparsehub: of transformers, or of
sentence-transformers where the head is linear or there is none on pooled states."""

from __future__ import annotations

from pathlib import Path

import torch

from sparsehub.backbone import Checkpoint
from sparsehub.errors import FormatError
from sparsehub.files import new_folder
from sparsehub.package.manifest import Manifest
from sparsehub.package.reader import Package, check_backbone
from sparsehub.package.sentence_transformers import write_embedder, write_linear_model
from sparsehub.package.task_model import TaskModel, load_task_model, save_checkpoint
from sparsehub.package.task_spec import EMBEDDING, LINEAR
from sparsehub.patch import apply_patch, make_patch, refuse_overflow
from sparsehub.progress import work


def native_dtype(package: Package) -> str:
    """The dtype in which a package's weights are exact: its own where it sets them, float32 where it adds to them."""
    return native_dtype_of(package.manifest)


def native_dtype_of(manifest: Manifest) -> str:
    """`native_dtype` of a package of which only the manifest was read."""
    delta = manifest.delta
    return delta.value_dtype if delta is not None and delta.value_kind == "set" else "float32"


@torch.no_grad()
def task_model_of(package: Package, checkpoint: Checkpoint, *, dtype: str = "float32") -> TaskModel:
    """The task's whole model in memory: the backbone with the package's delta applied, and its head.

    Raises what `headed_model_of` raises, and `DeltaError` for weights that the dtype cannot hold.
    """
    task_model = headed_model_of(package, checkpoint, dtype=dtype)
    patch = make_patch(task_model.backbone, package.delta)
    refuse_overflow(task_model.backbone.arena, patch)
    apply_patch(task_model.backbone.arena, patch)
    return task_model


@torch.no_grad()
def headed_model_of(package: Package, checkpoint: Checkpoint, *, dtype: str = "float32") -> TaskModel:
    """The task's model with its head, and the backbone as it is: `task_model_of` applies the delta to it, and a
    measurement on quantised weights runs the delta beside it.

    Raises `BackboneMismatchError` for another backbone, `FormatError` for a head that does not fit.
    """
    task_model = load_task_model(checkpoint, package.manifest.task, dtype=dtype)
    check_backbone(package.manifest, task_model.backbone)
    parameters = dict(task_model.model.named_parameters())
    shapes = {name: tuple(parameters[name].shape) for name in task_model.head}
    found = {name: tuple(tensor.shape) for name, tensor in package.head.items()}
    if shapes != found:
        raise FormatError("the head does not fit the task's model", found=found, expected=shapes)
    for name in task_model.head:
        parameters[name].copy_(package.head[name])
    return task_model


def materialize(package: Package, checkpoint: Checkpoint, out: Path, *, dtype: str | None = None) -> None:
    """Write the task's whole model and its tokenizer to the new folder `out`; raises like `task_model_of`.

    dtype: of the stored weights; None takes the package's own, in which they are exact.
    """
    task_model = task_model_of(package, checkpoint, dtype=dtype or native_dtype(package))
    with new_folder(out) as folder, work(f"writing {out.name}"):
        if package.manifest.task.kind == EMBEDDING:
            write_embedder(folder, task_model, checkpoint, package.manifest.task)
        elif package.manifest.task.head.type == LINEAR:
            write_linear_model(folder, task_model, checkpoint, package.manifest.task)
        else:
            save_checkpoint(task_model, checkpoint, package.manifest.task.max_length, folder)
