"""Sizes that are rounded up, so that few of them occur: checksums keep weights for each, decode steps a graph."""

from __future__ import annotations


def power_of_two(count: int) -> int:
    """The next power of two."""
    return 1 << max(0, count - 1).bit_length()
