"""Random: every entry is as good as any other.

Formula: score ~ U(0, 1), drawn from the seed and the parameter's name, so that other parameters do not matter.
Source: the `Random` baseline of Fu et al., AAAI 2023.
Cost: none to speak of. Data: none.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sparsehub.selection.rule import ScoreOf, SelectionRequest

needs: tuple[str, ...] = ()
defaults: Mapping[str, Any] = {"learning_rate": 1e-2}
options: Mapping[str, Any] = {}


def scores(request: SelectionRequest) -> ScoreOf:
    """Uniform random numbers, the same at every call."""

    def score_of(name: str) -> Tensor:
        # one hash over both: the generator takes no more than the lower 32 bits of a seed
        generator = torch.Generator().manual_seed(zlib.crc32(f"{request.seed} {name}".encode()))
        return torch.rand(request.parameters[name].numel(), generator=generator)

    return score_of
