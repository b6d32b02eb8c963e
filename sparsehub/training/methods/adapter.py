"""Adapters: small bottleneck layers behind every sub-layer. They change no weight, so no package can hold them.

Formula: h <- h + up(gelu(down(h))) on the output of attention and of the feed-forward part of every layer, before the
residual sum.
Source: Houlsby et al., "Parameter-Efficient Transfer Learning for NLP", ICML 2019, the `Adapter` baseline of Fu et al.
PEFT has no such layers, so they are here.
Cost: gradients and moments of the added layers; two more small products per sub-layer whenever it runs. What was
trained goes to a folder (`adapter.safetensors`, `head.safetensors`), not to a package: it is not served.
Options: `size` of the bottleneck.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sparsehub.errors import UsageError
from sparsehub.files import write_file
from sparsehub.package.manifest import HEAD_FILE
from sparsehub.package.task_model import TaskModel
from sparsehub.tensorfile import tensor_bytes
from sparsehub.training.job import Job, PreparedTraining
from sparsehub.training.trainable import Trainable

defaults: Mapping[str, Any] = {}
options: Mapping[str, Any] = {"size": 16}
packages = False
ADAPTER_FILE = "adapter.safetensors"
START = 1e-3  # standard deviation of the first weights: nearly the identity
# The last projection of attention and feed-forward part: BERT and relatives, DistilBERT, ModernBERT, Llama, GPT-2.
SUBLAYER_ENDS = ("output.dense", "out_lin", "lin2", "Wo", "o_proj", "down_proj", "c_proj")


class Bottleneck(nn.Module):
    """One adapter: down-projection, GELU, up-projection and the residual sum; at first nearly the identity."""

    def __init__(self, width: int, size: int):
        super().__init__()
        self.down, self.up = nn.Linear(width, size), nn.Linear(size, width)
        for layer in (self.down, self.up):
            nn.init.normal_(layer.weight, std=START)
            nn.init.zeros_(layer.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        added: Tensor = self.up(nn.functional.gelu(self.down(hidden)))
        return hidden + added


class AdapterModel(Trainable):
    """A task model with bottlenecks behind those of its sub-layers whose last projection is among `names`."""

    packages: ClassVar[bool] = False

    def __init__(self, task_model: TaskModel, names: Container[str], size: int):
        super().__init__(task_model)
        every = task_model.backbone.module.named_modules()
        ends = {n: m for n, m in every if n.endswith(SUBLAYER_ENDS) and f"{n}.weight" in names}
        if not ends:
            raise UsageError(
                f"adapter does not know where the sub-layers in scope of {task_model.backbone.architecture} end",
                expected=f"modules named like {', '.join(SUBLAYER_ENDS)}",
            )
        self.bottlenecks = nn.ModuleDict()
        for name, module in ends.items():
            layer = Bottleneck(self.config.hidden_size, size).to(task_model.backbone.device)
            self.bottlenecks[name.replace(".", "-")] = layer
            module.register_forward_hook(lambda _module, _inputs, output, layer=layer: layer(output))

    def own(self) -> dict[str, nn.Parameter]:
        return dict(self.bottlenecks.named_parameters())

    def save_aside(self, folder: Path, *, writes: bool) -> bool:
        if writes:
            write_file(folder / ADAPTER_FILE, tensor_bytes(self.own()))
            write_file(folder / HEAD_FILE, tensor_bytes(self.head))
        return True


def prepare(job: Job) -> PreparedTraining:
    """Bottlenecks behind every sub-layer, the backbone's weights untouched."""
    if job.option("size") < 1:
        raise UsageError("the bottleneck's size is out of range", found=job.option("size"), expected="at least 1")
    torch.manual_seed(job.config.seed)
    return PreparedTraining(AdapterModel(job.task_model, job.scope, job.option("size")), job.epochs, {})
