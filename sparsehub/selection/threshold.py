"""The exact top k of many tensors, for selection, without holding all scores in memory.

A float32 that is not negative sorts as its bit pattern does. Two passes count bit patterns (the upper 16 bits, then the
lower 16 of the bin that holds the k-th score), a third collects. Each pass computes one tensor's scores and drops them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from sparsehub.errors import DataError
from sparsehub.progress import work

_BINS = 1 << 16
PASSES = 3  # over all scores
_CHUNK = 1 << 20  # entries whose bit patterns are held at once: what a pass needs beside the scores stays small


ScoresOf = Callable[[str], Tensor | Iterable[Tensor]]  # flat scores, whole or in pieces


def top_k(names: Sequence[str], score_of: ScoresOf, k: int) -> dict[str, Tensor]:
    """The k highest scores: by name, flat int64 positions, sorted.

    Ties go to the earlier name, then the lower position. Scores of -1 are never chosen, so fewer than k may come back.
    Raises `DataError` where a score is NaN.
    """
    if k <= 0 or not names:
        return {}
    with work(f"choosing {k:,} entries", PASSES * len(names), "tensors") as advance:

        def counted(name: str) -> Tensor | Iterable[Tensor]:
            advance(1)
            return score_of(name)

        return _top_k(names, counted, k)


def _top_k(names: Sequence[str], score_of: ScoresOf, k: int) -> dict[str, Tensor]:
    threshold, ties = _threshold(names, score_of, k)
    chosen: dict[str, Tensor] = {}
    for name in names:
        places, start = [], 0
        for bits in _bits(name, score_of):
            above = bits > threshold
            equal = torch.nonzero(bits == threshold).flatten()[:ties] if threshold >= 0 else above.new_empty(0).long()
            ties -= len(equal)
            above[equal] = True
            places.append(torch.nonzero(above).flatten() + start)
            start += len(bits)
        positions = torch.cat(places)
        if len(positions):
            chosen[name] = positions.cpu()
    return chosen


def _threshold(names: Sequence[str], score_of: ScoresOf, k: int) -> tuple[int, int]:
    """The k-th highest bit pattern, and how many entries that equal it belong to the top k."""
    upper = sum(_counts(bits >> 16) for name in names for bits in _bits(name, score_of))
    top, k = _kth_bin(torch.as_tensor(upper), k)
    if top < 0:
        return -1, 0  # fewer than k entries may be chosen at all: take them all
    lower = sum(_counts(bits[bits >> 16 == top] & 0xFFFF) for name in names for bits in _bits(name, score_of))
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


def _counts(keys: Tensor) -> Tensor:
    return torch.bincount(keys[keys >= 0], minlength=_BINS).cpu()


def _bits(name: str, score_of: ScoresOf) -> Iterator[Tensor]:
    """Scores as sortable int32, a chunk at a time; -1 (and only it) becomes negative."""
    found = score_of(name)
    for scores in found.split(_CHUNK) if isinstance(found, Tensor) else found:
        if bool(torch.isnan(scores).any()):
            raise DataError(
                f"the scores of {name!r} are not numbers", fix="check the calibration data and the learning rate"
            )
        yield torch.where(scores < 0, -1, (scores + 0.0).view(torch.int32))
