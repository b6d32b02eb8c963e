"""What no model can read although it is a string: training refuses it in a row, and the engine in a request."""

from __future__ import annotations

import re
from collections.abc import Sequence

_SURROGATE = re.compile("[\ud800-\udfff]")  # half of a pair: JSON can hold one, UTF-8 and tokenizers cannot
# Anything but white space, control characters, and what Unicode has for nothing to be seen: what it calls
# Default_Ignorable_Code_Point, and the blank Braille pattern.
_VISIBLE = re.compile(
    "[^\\s\x00-\x1f\x7f-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e"
    "\u2060-\u206f\u2800\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U000e0000-\U000e0fff]"
)


def is_blank(text: str | Sequence[str]) -> bool:
    """Whether there is nothing to be seen in a text: it is empty, or white space, zero-width or control characters.

    Of a list of words: whether that holds for all of them together, or one is empty or white space.
    """
    if isinstance(text, str):
        return _VISIBLE.search(text) is None
    return not all(word.strip() for word in text) or all(map(is_blank, text))


def is_broken(text: str) -> bool:
    """Whether a text holds half of a surrogate pair, which UTF-8 and tokenizers cannot take."""
    return not text.isascii() and _SURROGATE.search(text) is not None
