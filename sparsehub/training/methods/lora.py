"""LoRA, through PEFT: a product of two thin matrices beside every linear layer, turned into a sparse change at the end.

Formula: W = W0 + (alpha / rank) B A; the package keeps the `density` or `nnz` largest entries of that product.
Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022; Mangrulkar et al., PEFT.
Cost: gradients and moments of A and B alone. The product changes every entry of the matrices: what the budget costs is
in the manifest (`before_packaging`), and the LoRA itself is kept in a folder beside the package, for PEFT.
Options: `rank`, `alpha`, `dropout`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparsehub.backbone.linear_weights import output_axes
from sparsehub.delta import Delta
from sparsehub.errors import UsageError
from sparsehub.extras import require
from sparsehub.files import write_file
from sparsehub.package.manifest import HEAD_FILE
from sparsehub.package.manifest_builder import public_name
from sparsehub.package.task_model import TaskModel
from sparsehub.selection.largest import cut
from sparsehub.tensorfile import tensor_bytes
from sparsehub.training.job import Job, PreparedTraining
from sparsehub.training.sparse_model import finite
from sparsehub.training.trainable import Trainable

defaults: Mapping[str, Any] = {}
options: Mapping[str, Any] = {"rank": 8, "alpha": 16.0, "dropout": 0.0}
NAME = "default"  # of the adapter inside PEFT


class LoraModel(Trainable):
    """A task model whose backbone has a LoRA from PEFT.

    names: the weights in scope; budget: the most entries that `delta` may have.
    """

    def __init__(self, task_model: TaskModel, names: Iterable[str], budget: int, **settings: Any):
        super().__init__(task_model)
        self._budget = budget
        targets = linear_weights(task_model, names)
        peft = require("peft", "peft")
        config = peft.LoraConfig(target_modules=[name.removesuffix(".weight") for name in targets], **settings)
        config.base_model_name_or_path = public_name(task_model.backbone.checkpoint.id)
        # in a tuple, since a module's attribute would give the backbone's parameters a second name
        self._peft = (peft.get_peft_model(task_model.backbone.module, config),)
        self._layers = {f"{n}.weight": m for n, m in task_model.backbone.module.named_modules() if hasattr(m, "lora_A")}
        for parameter in self.head.values():
            parameter.requires_grad_(True)  # PEFT freezes all that is inside the backbone, a fresh pooler too

    def own(self) -> dict[str, nn.Parameter]:
        parameters = self.backbone.module.named_parameters()
        return {name: parameter for name, parameter in parameters if ".lora_" in name}

    @torch.no_grad()
    def delta(self, value_dtype: str) -> Delta:
        """The largest entries of the products, and `kept`: what share of the squared norm they are."""
        shapes = {name: self._arena.slots[name].shape for name in self._layers}
        found = cut(shapes, self._change_of, self._budget, value_dtype)
        self.kept = found.kept
        return found.delta

    def _change_of(self, name: str) -> Tensor:
        layer: Any = self._layers[name]
        return finite(layer.get_delta_weight(NAME))

    def save_aside(self, folder: Path, *, writes: bool) -> bool:
        if writes:
            self._peft[0].save_pretrained(folder)
            write_file(folder / HEAD_FILE, tensor_bytes(self.head))
        return True

    def clear(self) -> None:
        self._peft[0].unload()
        self._layers = {}


def linear_weights(task_model: TaskModel, names: Iterable[str]) -> list[str]:
    """Those of `names` that are weights of linear layers; raises `UsageError` where there is none."""
    linear = output_axes(task_model.backbone.module)
    found = [name for name in names if name in linear]
    if not found:
        raise UsageError("there is no linear layer in scope", fix="widen --layers, --include or --exclude")
    return found


def prepare(job: Job) -> PreparedTraining:
    """A LoRA on every linear layer in scope."""
    settings = {"r": job.option("rank"), "lora_alpha": job.option("alpha"), "lora_dropout": job.option("dropout")}
    return PreparedTraining(LoraModel(job.task_model, job.scope, job.budget, **settings), job.epochs, {})
