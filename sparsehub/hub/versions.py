"""Which of two versions is higher.

Numbered versions (`1`, `v1.2`, `1.0.0-rc.1+build`) follow the precedence of semver 2.0, section 11, with missing
numbers read as zero. All other words lie below every numbered version, in natural order (`run-9` before `run-10`).
"""

from __future__ import annotations

import re
from collections.abc import Collection

_NUMBERED = re.compile(r"v?(\d+(?:\.\d+)*)(?:-([0-9A-Za-z.-]+))?(?:\+([0-9A-Za-z.-]+))?", re.ASCII)
_DIGITS = re.compile(r"(\d+)", re.ASCII)

Part = tuple[int, int, str]
Order = tuple[int, tuple[int, ...], int, tuple[Part, ...], str]


def version_order(version: str) -> Order:
    """A sort key that puts every two different versions in an order; equal in precedence, the text decides."""
    match = _NUMBERED.fullmatch(version)
    if match is None:
        return 0, (), 0, tuple(_part(piece) for piece in _DIGITS.split(version) if piece), version
    numbers = [int(number) for number in match[1].split(".")]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    before = match[2]
    parts = tuple(_part(piece) for piece in before.split(".")) if before else ()
    return 1, tuple(numbers), 0 if before else 1, parts, version


def is_release(version: str) -> bool:
    """Whether this is a numbered version that is not a pre-release."""
    match = _NUMBERED.fullmatch(version)
    return match is not None and match[2] is None


def highest(versions: Collection[str]) -> str:
    """The version that a bare name means: the highest release, or the highest of all where nothing is released."""
    return max([v for v in versions if is_release(v)] or versions, key=version_order)


def _part(piece: str) -> Part:
    # Semver: numbers compare as numbers and lie below words.
    return (0, int(piece), "") if _DIGITS.fullmatch(piece) else (1, 0, piece)
