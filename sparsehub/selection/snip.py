"""SNIP: the entries whose removal would change the loss most.

Formula: score = |dL/dw * w|, L the mean loss over the calibration batches.
Source: Lee, Ajanthan and Torr, "SNIP: Single-shot Network Pruning based on Connection Sensitivity", ICLR 2019. There
the chosen entries are kept and the others removed; here the chosen ones may change.
Cost: one forward and backward pass per calibration batch. Data: labelled training rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from sparsehub.selection.rule import ScoreOf, SelectionRequest

needs = ("gradient",)
defaults: Mapping[str, Any] = {}
options: Mapping[str, Any] = {}


def scores(request: SelectionRequest) -> ScoreOf:
    """Absolute products of gradient and weight."""
    gradients = request.statistics["gradient"]

    def score_of(name: str) -> Tensor:
        return (gradients[name].float() * request.parameters[name].detach().float()).flatten().abs()

    return score_of
