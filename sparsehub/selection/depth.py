"""`--layers`: a scope by depth, as training's settings read it. Nothing here imports torch."""

from __future__ import annotations

import re
from dataclasses import dataclass

from sparsehub.errors import UsageError

ALL, AUTO = "all", "auto"
MARGIN = 0.01  # of `auto`
MOST_MARGIN = 1.0  # scores lie between 0 and 1; of what has no end, such as a perplexity, it is a share
_FORMS = f"last:2, first:2, 3-5, {ALL}, {AUTO} or {AUTO}:0.02"
_TEXT = re.compile(r"(last|first):(\d{1,6})|(\d{1,6})-(\d{1,6})")


@dataclass(frozen=True)
class Depth:
    """Which layers may change: `last:2`, `first:2`, `3-5` (counted from 0, both included) or `all`.

    What comes after the layers, a final norm or a pooler, goes with the last ones; what comes before them, the
    embeddings, with the first ones.
    """

    text: str

    def within(self, count: int) -> range:
        """The places that may change, of a backbone of so many layers: -1 stands for what comes before them, `count`
        for what comes after. Raises `UsageError` where it has fewer layers than named."""
        if self.text == ALL:
            return range(-1, count + 1)
        end, number, first, last = _parts(self.text)
        if max(number, last + 1 if not end else 0) > count:
            raise UsageError(f"layers {self.text} are more than this backbone has", found=f"{count} layers")
        whole = {"last": range(count - number, count + 1), "first": range(-1, number), "": range(first, last + 1)}
        return whole[end]


def depth(text: str) -> Depth:
    """What `--layers` says; raises `UsageError`."""
    end, number, first, last = (ALL, 1, 0, 0) if text == ALL else _parts(text)
    if (end and not number) or first > last:
        raise UsageError("there is no layer in scope", found=text, expected=_FORMS)
    return Depth(text)


def margin_of(text: str) -> float | None:
    """How far a score may be below that of all layers where `--layers` says `auto` or `auto:0.02`, and None where it
    says which layers; raises `UsageError`."""
    if text == AUTO:
        return MARGIN
    if not text.startswith(f"{AUTO}:"):
        return None
    number = text.removeprefix(f"{AUTO}:")
    if not re.fullmatch(r"\d?\.?\d{1,6}", number, re.ASCII) or float(number) > MOST_MARGIN:
        raise UsageError("the margin is a number from 0 to 1, in plain decimals", found=text, expected=_FORMS)
    return float(number)


def _parts(text: str) -> tuple[str, int, int, int]:
    found = _TEXT.fullmatch(text)
    if found is None:
        raise UsageError("layers are named from an end or by their numbers", found=text, expected=_FORMS)
    end, *numbers = found.groups()
    number, first, last = (int(text or 0) for text in numbers)
    return end or "", number, first, last
