"""SAM without its shortcut: Theorem 3 as written, with an estimated Hessian.

Formula: score = g^2 / (|h| + d m), g = dL/dw, h the Hessian's diagonal, m the mean of |h| over the parameter, d the
`damping`. h is estimated by Hutchinson's probes: the mean of z * Hz over random signs z, `probes` fresh ones for every
batch, each of them zero outside one group of parameters, which costs more passes and gives less noise.
Source: Fu et al., AAAI 2023, Theorem 3 (the authors gave it up as too costly); Bekas, Kokiopoulou and Saad, "An
estimator for the diagonal of a matrix", 2007. Where the loss is not convex h may be negative, and near zero it is
noise: hence the absolute value and the damping.
Cost: about 3 x `probes` x groups (of 64 MiB of parameters) forward and backward passes per calibration batch, and a
half-precision tensor beside each gradient. Data: labelled training rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sparsehub.selection.rule import ScoreOf, SelectionRequest

needs = ("hessian", "gradient")
defaults: Mapping[str, Any] = {"calibration_batches": 16}
options: Mapping[str, Any] = {"probes": 2, "damping": 0.1}


def scores(request: SelectionRequest) -> ScoreOf:
    """Squared gradients over damped curvature."""
    gradients, curvature = request.statistics["gradient"], request.statistics["hessian"]
    damping = float(request.options.get("damping", options["damping"]))

    def score_of(name: str) -> Tensor:
        # one buffer for it all: beside gradients and curvature, a large embedding's temporaries would be the run's peak
        score = curvature[name].flatten().to(torch.float32, copy=True).abs_()
        # the smallest normal number: a parameter that the loss does not reach has no gradient and no curvature
        score.add_(damping * score.mean() + torch.finfo(torch.float32).tiny).reciprocal_()
        gradient = gradients[name].flatten().float()
        return score.mul_(gradient).mul_(gradient)

    return score_of
