"""Magnitude: the largest weights may change.

Formula: score = |w|.
Source: the `MagPruning` baseline of Fu et al., AAAI 2023, after Han et al. 2015.
Cost: none to speak of. Data: none.
"""

from __future__ import annotations

from torch import Tensor

from sparsehub.selection.rule import ScoreOf, SelectionRequest

needs_gradients = False


def scores(request: SelectionRequest) -> ScoreOf:
    """Absolute weights."""

    def score_of(name: str) -> Tensor:
        return request.parameters[name].detach().flatten().float().abs()

    return score_of
