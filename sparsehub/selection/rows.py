"""The same number of entries for every neuron: `--granularity row`, for any rule.

Formula: k = budget / rows, rounded down; in each output row of each linear layer in scope the k entries of the highest
score, or all, where it has no more. Biases, norms and embeddings have no inputs to choose from and stay as they are.
Source: Zhang, Shen, Cao and Shutova, "NeuroAda: Activating Each Neuron's Potential for Parameter-Efficient
Fine-Tuning", EMNLP 2025; there the score is the weight's size (`magnitude`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from sparsehub.errors import DataError, UsageError


def top_of_rows(
    weights: Mapping[str, tuple[Tensor, int]], score_of: Callable[[str], Tensor], budget: int
) -> dict[str, Tensor]:
    """By name, the chosen flat positions, sorted. Ties go to the earlier input; scores of -1 are never chosen.

    weights: of the linear layers in scope, each with the dimension that counts its outputs.
    Raises `UsageError` where there are none, and where the budget is less than one entry a row.
    """
    if not weights:
        raise UsageError("there are no output rows in scope: no linear layer is", fix="widen the scope")
    rows = sum(weight.shape[axis] for weight, axis in weights.values())
    if budget < rows:
        raise UsageError(
            "granularity row gives every output row the same number of entries",
            found=f"a budget of {budget:,} entries for {rows:,} rows",
            fix="raise the budget, or narrow the scope by --layers or --include",
        )
    found = {n: _top(n, tuple(w.shape), axis, score_of(n), budget // rows) for n, (w, axis) in weights.items()}
    return {name: positions for name, positions in found.items() if len(positions)}


def _top(name: str, shape: tuple[int, ...], axis: int, scores: Tensor, count: int) -> Tensor:
    if bool(torch.isnan(scores).any()):
        raise DataError(f"the scores of {name!r} are not numbers", fix="check the calibration data")
    places = torch.arange(len(scores), device=scores.device).view(shape)
    scores = scores.view(shape)
    if axis == 1:
        scores, places = scores.t(), places.t()
    order = scores.sort(dim=1, descending=True, stable=True).indices[:, :count]
    chosen = places.gather(1, order)[scores.gather(1, order) >= 0]
    return chosen.sort().values.cpu()
