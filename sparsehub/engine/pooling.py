"""Sentence embeddings from token states, the way the checkpoint says (sentence-transformers' files) or by the mean."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sparsehub.errors import BackboneError
from sparsehub.files import strict_json

CONFIG_FILE = Path("1_Pooling") / "config.json"
MEAN, FIRST, LAST = "pooling_mode_mean_tokens", "pooling_mode_cls_token", "pooling_mode_lasttoken"


@dataclass(frozen=True)
class Pooling:
    """How a checkpoint makes one vector of a sequence's token states; `BatchRunner` answers embeddings with it."""

    mode: str  # `MEAN`, `FIRST` or `LAST`, as sentence-transformers calls them

    def vectors(self, states: Tensor, mask: Tensor) -> Tensor:
        """States [rows, length, width] and mask [rows, length] to unit vectors [rows, width], in float32."""
        return torch.nn.functional.normalize(self._pool(states.float(), mask), dim=-1)

    def _pool(self, states: Tensor, mask: Tensor) -> Tensor:
        if self.mode == FIRST:
            return states[torch.arange(len(states)), mask.int().argmax(1)]
        if self.mode == LAST:
            last = mask.shape[1] - 1 - mask.flip(1).int().argmax(1)
            return states[torch.arange(len(states)), last]
        weights = mask.unsqueeze(-1).to(states.dtype)
        return (states * weights).sum(1) / weights.sum(1)


def pooling_of(folder: Path) -> Pooling:
    """The pooling of a checkpoint folder; raises `BackboneError` for one that is not supported."""
    path = folder / CONFIG_FILE
    table = strict_json(path.read_bytes(), path.name) if path.is_file() else {MEAN: True}
    wanted = [name for name, on in table.items() if name.startswith("pooling_mode_") and on is True]
    known = (MEAN, FIRST, LAST)
    if len(wanted) != 1 or wanted[0] not in known:
        raise BackboneError(
            "the checkpoint's pooling is not supported", found=", ".join(wanted), expected=", ".join(known)
        )
    return Pooling(wanted[0])
