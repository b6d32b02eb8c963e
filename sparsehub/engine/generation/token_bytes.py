"""The bytes that a token stands for, which may be a part of a character: what log probabilities report."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")  # how a vocabulary with byte fallback spells one byte
_PRINTED = (
    *range(33, 127),
    *range(161, 173),
    *range(174, 256),
)  # bytes that a byte-level vocabulary writes as they are
_OTHERS = [byte for byte in range(256) if byte not in _PRINTED]  # ... and those that it writes from character 256 on
_ALPHABET = {chr(byte): byte for byte in _PRINTED} | {chr(256 + n): byte for n, byte in enumerate(_OTHERS)}


class TokenBytes:
    """Tells the bytes of every token of a tokenizer; an `OutputProcessor` asks it. Together they are the text's bytes.

    Not thread-safe, as the tokenizer is not.
    """

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        self._added = {token: added.content.encode() for token, added in tokenizer.added_tokens_decoder.items()}
        kinds = set(_decoders(tokenizer))
        self._byte_level, self._byte_fallback = "ByteLevel" in kinds, "ByteFallback" in kinds
        anchors = tokenizer("a", add_special_tokens=False)["input_ids"]
        self._anchor: list[int] = anchors[-1:]
        self._known: dict[tuple[int, bool], bytes] = {}

    def of(self, token: int, *, begins: bool) -> bytes:
        """The bytes of a token; a special token's are its spelling's. begins: whether it is the first of its text,
        where some vocabularies leave the space before a word out."""
        key = (token, begins)
        if key not in self._known:
            self._known[key] = self._added[token] if token in self._added else self._made(token, begins)
        return self._known[key]

    def _made(self, token: int, begins: bool) -> bytes:
        spelt = self._tokenizer.convert_ids_to_tokens(token)
        if self._byte_level and spelt is not None and all(character in _ALPHABET for character in spelt):
            return bytes(_ALPHABET[character] for character in spelt)
        if self._byte_fallback and spelt is not None and (byte := _BYTE.fullmatch(spelt)):
            return bytes([int(byte[1], 16)])
        before = [] if begins else self._anchor  # decoders look at what comes before
        text: str = self._tokenizer.decode([*before, token])
        return text[len(self._tokenizer.decode(before)) :].encode(errors="replace")


def _decoders(tokenizer: Any) -> Iterator[str]:
    """The kinds of steps by which a tokenizer decodes."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None and backend.decoder is not None:
        yield from _kinds(json.loads(backend.decoder.__getstate__()))


def _kinds(decoder: Mapping[str, Any]) -> Iterator[str]:
    yield decoder["type"]
    for step in decoder.get("decoders", ()):
        yield from _kinds(step)
