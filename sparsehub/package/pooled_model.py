"""What `LinearHeadModel` and `EmbeddingModel` share: a backbone whose states are pooled, as a model of transformers."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sparsehub.package.task_spec import TaskSpec


class PooledModel(PreTrainedModel):
    """transformers' base model, and a task that pools its states.

    It is written by `materialize`, in sentence-transformers' format, not by `save_pretrained`: transformers has no
    class of this shape.
    """

    base_model_prefix = "backbone"
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True

    def __init__(self, module: nn.Module, task: TaskSpec):
        base: Any = module
        super().__init__(copy.deepcopy(base.config))
        self.task, self.backbone = task, module
        self.supports_gradient_checkpointing = getattr(base, "supports_gradient_checkpointing", False)

    def states(self, input_ids: Tensor, **inputs: Tensor) -> tuple[Tensor, Tensor]:
        """The backbone's last states [texts, length, width], and the mask [texts, length] of what is text there.

        input_ids: [rows, length], or [rows, texts, length], whose texts follow each other.
        """
        batch = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), **inputs}
        flat = {name: tensor.reshape(-1, tensor.shape[-1]) for name, tensor in batch.items()}
        return self.backbone(**flat).last_hidden_state, flat["attention_mask"]
