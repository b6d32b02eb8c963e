"""Fisher: the entries about which the rows say most.

Formula: score = sum over rows of (dl/dw)^2, l a row's own loss with its true label: the empirical Fisher information.
Against `sam` the square stands inside the sum, so gradients of opposite signs do not cancel.
Source: Sung, Nair and Raffel, "Training Neural Networks with Fixed Sparse Masks" (FISH), NeurIPS 2021.
Cost: one forward and backward pass per calibration row. Data: labelled training rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from sparsehub.selection.rule import ScoreOf, SelectionRequest

needs = ("row_squares",)
defaults: Mapping[str, Any] = {}
options: Mapping[str, Any] = {}


def scores(request: SelectionRequest) -> ScoreOf:
    """Summed squares."""
    squares = request.statistics["row_squares"]

    def score_of(name: str) -> Tensor:
        return squares[name].flatten().float()

    return score_of
