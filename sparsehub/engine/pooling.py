"""Sentence embeddings from token states, the way the checkpoint says (sentence-transformers' files) or by the mean."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from sparsehub.errors import BackboneError
from sparsehub.files import strict_json

Pool = Callable[[Tensor, Tensor], Tensor]
CONFIG_FILE = Path("1_Pooling") / "config.json"


def pooling_of(folder: Path) -> Pool:
    """The checkpoint's pooling: states [rows, length, width] and mask [rows, length] to unit vectors [rows, width]."""
    path = folder / CONFIG_FILE
    table = strict_json(path.read_bytes(), path.name) if path.is_file() else {"pooling_mode_mean_tokens": True}
    wanted = [name for name, on in table.items() if name.startswith("pooling_mode_") and on is True]
    known = {
        "pooling_mode_mean_tokens": _mean,
        "pooling_mode_cls_token": _first,
        "pooling_mode_lasttoken": _last,
    }
    if len(wanted) != 1 or wanted[0] not in known:
        raise BackboneError(
            "the checkpoint's pooling is not supported", found=", ".join(wanted), expected=", ".join(known)
        )
    pool = known[wanted[0]]
    return lambda states, mask: torch.nn.functional.normalize(pool(states.float(), mask), dim=-1)


def _mean(states: Tensor, mask: Tensor) -> Tensor:
    weights = mask.unsqueeze(-1).to(states.dtype)
    return (states * weights).sum(1) / weights.sum(1)


def _first(states: Tensor, mask: Tensor) -> Tensor:
    return states[torch.arange(len(states)), mask.int().argmax(1)]


def _last(states: Tensor, mask: Tensor) -> Tensor:
    last = mask.shape[1] - 1 - mask.flip(1).int().argmax(1)
    return states[torch.arange(len(states)), last]
