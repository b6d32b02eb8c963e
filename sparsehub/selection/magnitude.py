"""Magnitude: the largest weights may change.

Formula: score = |w|.
Source: the `MagPruning` baseline of Fu et al., AAAI 2023, after Han et al. 2015.
Cost: none to speak of. Data: none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from sparsehub.selection.rule import ScoreOf, SelectionRequest

needs: tuple[str, ...] = ()
defaults: Mapping[str, Any] = {"learning_rate": 1e-2}
options: Mapping[str, Any] = {}


def scores(request: SelectionRequest) -> ScoreOf:
    """Absolute weights."""

    def score_of(name: str) -> Tensor:
        return request.parameters[name].detach().flatten().float().abs()

    return score_of
