"""One vector of a sequence's token states, the way its checkpoint says; embeddings and linear heads are made of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsehub.errors import BackboneError
from sparsehub.files import strict_json
from sparsehub.package.task_spec import FIRST, LAST, MAX, MEAN, HeadSpec

MODULES_FILE = "modules.json"
POOLING_FILE = Path("1_Pooling") / "config.json"  # of sentence-transformers
# How sentence-transformers calls them: by a switch each, and from its version 6 on by one word.
SWITCHES = {
    MEAN: "pooling_mode_mean_tokens",
    FIRST: "pooling_mode_cls_token",
    LAST: "pooling_mode_lasttoken",
    MAX: "pooling_mode_max_tokens",
}
_WORDS = {"mean": MEAN, "cls": FIRST, "lasttoken": LAST, "max": MAX}


def pool(pooling: str, states: Tensor, mask: Tensor) -> Tensor:
    """States [rows, length, width] to vectors [rows, width] in float32, over the tokens of the mask [rows, length].

    pooling: one of `POOLINGS`.
    """
    if pooling in (FIRST, LAST):
        return states[torch.arange(len(states)), token_of(pooling, mask)].float()
    states = states.float()
    if pooling == MAX:
        return states.masked_fill(mask.unsqueeze(-1) == 0, -torch.inf).amax(1)
    weights = mask.unsqueeze(1).to(states.dtype)
    return torch.bmm(weights, states).squeeze(1) / weights.sum(2)


def token_of(pooling: str, mask: Tensor) -> Tensor:
    """[rows], the place of the one token that is read. pooling: `FIRST` or `LAST`; mask: [rows, length]."""
    if pooling == FIRST:
        return mask.int().argmax(1)
    return mask.shape[1] - 1 - mask.flip(1).int().argmax(1)


def unit_vectors(pooling: str, states: Tensor, mask: Tensor) -> Tensor:
    """`pool`, scaled to unit length: sentence embeddings."""
    return torch.nn.functional.normalize(pool(pooling, states, mask), dim=-1)


def vectors_of(head: HeadSpec, states: Tensor, mask: Tensor) -> Tensor:
    """The vectors of a task whose pooled states are its answer."""
    assert head.pooling is not None  # such a task's head has one
    return (unit_vectors if head.normalize else pool)(head.pooling, states, mask)


def pooling_of(folder: Path) -> str:
    """The pooling of a checkpoint folder, the mean where it does not say; raises `BackboneError` for one that is not
    supported."""
    return _stated(folder) or MEAN


def default_pooling(folder: Path, config: Any) -> str:
    """The pooling of a linear head: as the checkpoint says, else the last token of a decoder and the mean of others.

    config: the backbone's, of transformers. Raises like `pooling_of`.
    """
    return _stated(folder) or (LAST if _is_decoder(config) else MEAN)


def normalizes(folder: Path) -> bool:
    """Whether a checkpoint's vectors have unit length: as its modules say, and where it does not say, they do."""
    kinds = module_kinds(folder)
    return not kinds or "Normalize" in kinds


def module_kinds(folder: Path) -> list[str]:
    """The classes of a sentence-transformers folder's modules, without their packages; none for another folder."""
    path = folder / MODULES_FILE
    table = strict_json(path.read_bytes(), path.name) if path.is_file() else []
    rows = table if isinstance(table, list) else []
    return [str(row.get("type", "")).rpartition(".")[2] for row in rows if isinstance(row, dict)]


def _stated(folder: Path) -> str | None:
    path = folder / POOLING_FILE
    if not path.is_file():
        return None
    table = strict_json(path.read_bytes(), path.name)
    wanted = [name for name, on in table.items() if name.startswith("pooling_mode_") and on is True]
    known = {switch: pooling for pooling, switch in SWITCHES.items()}
    if isinstance(word := table.get("pooling_mode"), str):
        wanted, known = [word], _WORDS
    if len(wanted) != 1 or wanted[0] not in known:
        raise BackboneError(
            "the checkpoint's pooling is not supported", found=", ".join(wanted), expected=", ".join(known)
        )
    return known[wanted[0]]


def _is_decoder(config: Any) -> bool:
    """Whether a model sees earlier tokens alone: transformers can make it generate, and not fill in masked words."""
    from transformers.models.auto import modeling_auto

    kind = config.model_type
    masked = modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return kind in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and kind not in masked
