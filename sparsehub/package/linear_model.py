"""A backbone with a linear head as a model of transformers, for training, evaluation and pipelines."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.modeling_outputs import SequenceClassifierOutput

from sparsehub.errors import DataError
from sparsehub.package.linear_head import BIAS, WEIGHT, features, linear_shapes
from sparsehub.package.pooled_model import PooledModel
from sparsehub.package.task_spec import MULTI_LABEL, REGRESSION, TaskSpec

START = 0.02  # standard deviation of a fresh head's weights


class LinearHeadModel(PooledModel):
    """A backbone and one Linear on its pooled states: what `load_task_model` gives for a linear head."""

    def __init__(self, module: nn.Module, task: TaskSpec):
        super().__init__(module, task)
        shapes = linear_shapes(task, self.config.hidden_size)
        device = next(module.parameters()).device
        self.register_parameter(WEIGHT, nn.Parameter(torch.randn(shapes[WEIGHT]).mul(START).to(device)))
        self.register_parameter(BIAS, nn.Parameter(torch.zeros(shapes[BIAS], device=device)))

    def forward(self, input_ids: Tensor, labels: Tensor | None = None, **inputs: Tensor) -> SequenceClassifierOutput:
        """Logits [rows, outputs] or [rows, choices], and the loss where there are labels.

        input_ids: [rows, length]; [rows, choices, length] of a multiple choice; [rows, 2, length] of pairs whose texts
        are read alone. Raises `DataError` for pairs that were made one sequence where they are read alone.
        """
        if self.task.reads_alone and (input_ids.ndim != 3 or input_ids.shape[1] != 2):
            raise DataError(
                "this task reads each text of a pair alone", found=tuple(input_ids.shape), expected="[rows, 2, length]"
            )
        found = features(self.task.head, *self.states(input_ids, **inputs))
        logits = functional.linear(found, self.weight, self.bias).float().view(len(input_ids), -1)
        return SequenceClassifierOutput(loss=None if labels is None else self._loss(logits, labels), logits=logits)

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        if self.task.kind == REGRESSION:
            return functional.mse_loss(logits.view(-1), labels.float().view(-1))
        if self.task.kind == MULTI_LABEL:
            return functional.binary_cross_entropy_with_logits(logits, labels.float())
        return functional.cross_entropy(logits, labels)
