"""Token ids into text while they come: whole characters only, and nothing that a stop text may begin with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

INCOMPLETE = "\ufffd"  # what a decoder makes of the first bytes of a character


class TextStream:
    """Decodes one text for `OutputProcessor`. What it returns never changes; all of it together is the whole text."""

    def __init__(self, tokenizer: Any, stop: Sequence[str] = ()):
        self._tokenizer, self._stop = tokenizer, tuple(stop)
        self._ids: list[int] = []
        self._begin = 0  # the first of the tokens that are decoded together
        self._read = 0  # how many tokens have had their text returned
        self._held = ""  # text that may be the beginning of a stop text
        self.stopped = False  # whether a stop text was met
        self.decoded = 0  # characters of whole tokens so far, those that are held back included

    def push(self, token: int) -> str:
        """Take a token; the further text that is certain now, which may be empty."""
        self._ids.append(token)
        text = self._decode(self._ids[self._begin :])
        if text.endswith(INCOMPLETE):
            return ""
        fresh = text[len(self._decode(self._ids[self._begin : self._read])) :]
        self._begin, self._read = self._read, len(self._ids)
        return self._release(fresh)

    def flush(self) -> str:
        """The text that was held back, at the end of a sequence that no stop text has ended."""
        text = self._decode(self._ids[self._begin :])
        rest = self._release(text[len(self._decode(self._ids[self._begin : self._read])) :])
        held, self._held = self._held, ""
        return rest if self.stopped else rest + held

    def _decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True)
        return text

    def _release(self, fresh: str) -> str:
        self.decoded += len(fresh)
        text = self._held + fresh
        places = [place for stop in self._stop if (place := text.find(stop)) >= 0]
        if places:
            self.stopped, self._held = True, ""
            return text[: min(places)]
        keep = max((_begun(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _begun(text: str, stop: str) -> int:
    """How many of the last characters of `text` may be the beginning of a stop text."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
