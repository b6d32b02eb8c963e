"""BitFit: every bias may change, and nothing else.

Formula: score = 1 for the entries of biases; no other entry is ever chosen.
Source: Ben Zaken, Goldberg and Ravfogel, "BitFit", ACL 2022.
Cost: none. Data: none. The budget is an upper bound, by default no bound: one below the number of biases is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sparsehub.errors import UsageError
from sparsehub.selection.rule import ScoreOf, SelectionRequest

needs: tuple[str, ...] = ()
defaults: Mapping[str, Any] = {"density": 1.0, "learning_rate": 1e-2}
options: Mapping[str, Any] = {}


def scores(request: SelectionRequest) -> ScoreOf:
    """One for biases, -1 for all else."""
    biases = sum(tensor.numel() for name, tensor in request.parameters.items() if _is_bias(name))
    if biases == 0:
        raise UsageError("bitfit finds no biases in this backbone", fix="choose another method")
    if biases > request.budget or request.granularity != "global":
        total = sum(tensor.numel() for tensor in request.parameters.values())
        raise UsageError(
            "bitfit always chooses every bias",
            found=f"a budget of {request.budget} entries, granularity {request.granularity}",
            expected=f"at least {biases} entries, granularity global",
            fix=f"raise --density to {biases / total:.6f} or more",
        )

    def score_of(name: str) -> Tensor:
        return torch.full((request.parameters[name].numel(),), 1.0 if _is_bias(name) else -1.0)

    return score_of


def _is_bias(name: str) -> bool:
    return name.rpartition(".")[2] == "bias"
