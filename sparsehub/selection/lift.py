"""LIFT: the largest entries of what is left of a weight when its rank is reduced.

Formula: score = |W_r|, W_r = the first r terms of W's singular value decomposition; weights of linear layers alone,
each with a share of the budget by its size.
Source: Liu et al., "LIFT the Veil for the Truth: Principal Weights Emerge after Rank Reduction for Reasoning-Focused
Supervised Fine-Tuning", ICML 2025. There the mask is found again every so many steps; here it is found once.
Cost: a decomposition of every matrix, and its factors in memory. Data: none.
Options: `rank` r.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sparsehub.errors import UsageError
from sparsehub.selection.rule import ScoreOf, SelectionRequest

needs: tuple[str, ...] = ()
defaults: Mapping[str, Any] = {"granularity": "tensor", "learning_rate": 1e-2}
options: Mapping[str, Any] = {"rank": 32}


def scores(request: SelectionRequest) -> ScoreOf:
    """Absolute entries of the low-rank approximations, -1 for all that is no weight of a linear layer."""
    rank = int(request.options.get("rank", options["rank"]))
    names = [name for name in request.parameters if name in request.output_axes]
    if rank < 1 or not names:
        raise UsageError("lift needs a rank of at least 1 and linear layers in scope", found=f"rank {rank}")
    factors = {name: _factors(request.parameters[name], rank) for name in names}

    def score_of(name: str) -> Tensor:
        if name not in factors:
            return torch.full((request.parameters[name].numel(),), -1.0)
        left, right = factors[name]
        return (left @ right).flatten().abs()

    return score_of


def _factors(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Two factors, [m, rank] and [rank, n], whose product is the best approximation of that rank."""
    left, strength, right = torch.linalg.svd(weight.detach().float(), full_matrices=False)
    # copies: a slice would keep the whole decomposition
    return (left[:, :rank] * strength[:rank]).clone(), right[:rank].clone()
