"""The exact top k of many tensors without ever holding all scores at once.

A float32 that is not negative sorts as its bit pattern does. Two passes count bit patterns (the upper 16 bits, then the
lower 16 of the bin that holds the k-th score), a third collects. Each pass computes one tensor's scores and drops them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sparsehub.errors import DataError

_BINS = 1 << 16


def top_k(names: Sequence[str], score_of: Callable[[str], Tensor], k: int) -> dict[str, Tensor]:
    """The k highest scores: by name, flat int64 positions, sorted.

    Ties go to the earlier name, then the lower position. Scores of -1 are never chosen, so fewer than k may come back.
    Raises `DataError` where a score is NaN.
    """
    if k <= 0:
        return {}
    threshold, ties = _threshold(names, score_of, k)
    chosen: dict[str, Tensor] = {}
    for name in names:
        bits = _bits(name, score_of)
        above = bits > threshold
        equal = torch.nonzero(bits == threshold).flatten()[:ties] if threshold >= 0 else above.new_empty(0).long()
        ties -= len(equal)
        above[equal] = True
        positions = torch.nonzero(above).flatten()
        if len(positions):
            chosen[name] = positions.cpu()
    return chosen


def _threshold(names: Sequence[str], score_of: Callable[[str], Tensor], k: int) -> tuple[int, int]:
    """The k-th highest bit pattern, and how many entries that equal it belong to the top k."""
    upper = sum(_counts(_bits(name, score_of), lambda bits: bits >> 16) for name in names)
    top, k = _kth_bin(torch.as_tensor(upper), k)
    if top < 0:
        return -1, 0  # fewer than k entries may be chosen at all: take them all
    lower = sum(_counts(_bits(name, score_of), lambda bits: bits[bits >> 16 == top] & 0xFFFF) for name in names)
    bottom, k = _kth_bin(torch.as_tensor(lower), k)
    return (top << 16) + bottom, k


def _kth_bin(counts: Tensor, k: int) -> tuple[int, int]:
    """The bin that holds the k-th entry from above, and the entry's rank inside it."""
    from_above = counts.flip(0).cumsum(0)
    place = int(torch.searchsorted(from_above, k))
    if place >= len(counts):
        return -1, 0
    before = int(from_above[place - 1]) if place else 0
    return len(counts) - 1 - place, k - before


def _counts(bits: Tensor, key: Callable[[Tensor], Tensor]) -> Tensor:
    return torch.bincount(key(bits[bits >= 0]), minlength=_BINS).cpu()


def _bits(name: str, score_of: Callable[[str], Tensor]) -> Tensor:
    """Scores as sortable int32; -1 (and only it) becomes negative."""
    scores = score_of(name)
    if bool(torch.isnan(scores).any()):
        raise DataError(
            f"the scores of {name!r} are not numbers", fix="check the calibration data and the learning rate"
        )
    return torch.where(scores < 0, -1, (scores + 0.0).view(torch.int32))
