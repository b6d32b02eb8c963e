"""Checksums of weights in memory: 32 or 64 bits that change when a weight does, cheap enough to compute while serving.

Memory fails at random, and nobody forges it: no cryptographic digest is needed. What a file promises is proved by
sha256 where it is read.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Iterable

import torch
from torch import Tensor

from sparsehub.engine.rounding import power_of_two

_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int32}
_FOLD = 0x9E3779B97F4A7C15 - (1 << 64)  # odd: the order of the tensors counts


def checksum(tensors: Iterable[Tensor]) -> int:
    """One number over the bytes of tensors, in their order; `TensorDigests` and `IntegrityChecker` compare it.

    In host memory it is a CRC-32: one or two flipped bits, and any damage within 32 bits, always change it, anything
    else but one time in 2^32. On another device see `sum_of_words`. tensors: contiguous, all on one device.
    """
    result, rest = 0, []
    for tensor in tensors:
        if tensor.device.type == "cpu":
            result = zlib.crc32(_bytes(tensor), result)
        else:
            rest.append(tensor)
    return int(sum_of_words(rest)) if rest else result


def _bytes(tensor: Tensor) -> memoryview:
    data: memoryview = tensor.detach().reshape(-1).view(torch.uint8).numpy().data
    return data


def sum_of_words(tensors: Iterable[Tensor]) -> Tensor:
    """[] int64: sum of word i times a random odd 64-bit number w_i, modulo 2^64, for every tensor, folded in order.

    One damaged word always changes it; more of them, whatever the pattern, but one time in 2^32 (multiply-shift
    hashing: Dietzfelbinger, "Universal hashing and k-wise independent random variables", STACS 1996). Words have 32
    bits, or fewer where the tensor's entries have. It runs where the tensors are, and nothing waits for it.
    """
    result: Tensor | None = None
    for tensor in tensors:
        words = tensor.detach().reshape(-1).view(_word(tensor)).long()
        part = (words * _weights(power_of_two(len(words)), tensor.device)[: len(words)]).sum()
        result = part if result is None else result * _FOLD + part
    assert result is not None  # the caller has a tensor
    return result


def _word(tensor: Tensor) -> torch.dtype:
    """What a tensor's bytes are read as: 32 bits where they fill such words and begin at one."""
    start, nbytes = tensor.storage_offset() * tensor.element_size(), tensor.nbytes
    return torch.int32 if nbytes % 4 == 0 and start % 4 == 0 and tensor.ndim else _WORDS[tensor.element_size()]


@functools.cache
def _weights(count: int, device: torch.device) -> Tensor:
    """[count] odd int64; the same at every start, the shorter ones the beginning of no longer one."""
    generator = torch.Generator().manual_seed(count)
    drawn = torch.randint(-(1 << 63), (1 << 63) - 1, (count,), dtype=torch.int64, generator=generator)
    return (drawn | 1).to(device)
