"""SAM as its authors' released code has it, which is not what their text says.

Formula: score = |sum over batches of g_b / max(1, |g_b|)|, g_b the gradient of a batch's mean loss over the whole
model, head included, dropout on, the head as it was drawn; the same share of every tensor.
Source: https://github.com/fuzihaofzh/AnalyzeParameterEfficientFinetune, src/runner.py, `bsearch` with `burnin=600`.
There a small data set is gone through several times for its 600 batches; here each row is looked at once at most.
Cost: two forward and backward passes per calibration batch (the norm comes first, so that only one dense gradient is
held). Data: labelled training rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from sparsehub.selection.rule import ScoreOf, SelectionRequest

needs = ("clipped_gradient",)
defaults: Mapping[str, Any] = {"granularity": "tensor", "calibration_batches": 600}
options: Mapping[str, Any] = {}


def scores(request: SelectionRequest) -> ScoreOf:
    """Absolute sums of clipped gradients."""
    gradients = request.statistics["clipped_gradient"]

    def score_of(name: str) -> Tensor:
        return gradients[name].flatten().float().abs()

    return score_of
