"""Child-Tuning, its task-driven form (Child-Tuning_D): a child network that is found once and trained alone.

Formula: score = sum over batches of (dL_b/dw)^2, L_b a batch's mean loss, dropout on; only entries of layers compete.
Source: Xu et al., "Raise a Child in Large Language Model", EMNLP 2021; the paper's formula sums over rows, as `fisher`
does, its released code over batches, as here.
Cost: one forward and backward pass per calibration batch. Data: labelled training rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sparsehub.errors import UsageError
from sparsehub.selection.rule import ScoreOf, SelectionRequest, kind_of

needs = ("batch_squares",)
defaults: Mapping[str, Any] = {}
options: Mapping[str, Any] = {}


def scores(request: SelectionRequest) -> ScoreOf:
    """Summed squares inside the layers, -1 outside."""
    squares = request.statistics["batch_squares"]
    if not any(_in_a_layer(name) for name in request.parameters):
        raise UsageError("child-tuning finds no numbered layers in this backbone", fix="choose fisher instead")

    def score_of(name: str) -> Tensor:
        if not _in_a_layer(name):
            return torch.full((request.parameters[name].numel(),), -1.0)
        return squares[name].flatten().float()

    return score_of


def _in_a_layer(name: str) -> bool:
    return kind_of(name) != name
