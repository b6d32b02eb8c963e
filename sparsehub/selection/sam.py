"""SAM, the Second-order Approximation Method.

Formula: score = (dL/dw)^2, L the mean loss over the calibration batches.
Source: Fu et al., "On the Effectiveness of Parameter-Efficient Fine-Tuning", AAAI 2023, section "Second-order
Approximation Method". With the Hessian's diagonal taken as constant, the best mask of a given size keeps the entries
with the largest squared gradient.
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
    """Squared gradients."""
    gradients = request.statistics["gradient"]

    def score_of(name: str) -> Tensor:
        return gradients[name].flatten().float().square()

    return score_of
