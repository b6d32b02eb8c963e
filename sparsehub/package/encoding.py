"""Tokenises rows (dictionaries by field name) and pads them to batches.

Training and the engine both use it, so a served row gets the token ids that it would have had in training. A special
token that a text spells (`[SEP]`, `</s>`) is text: only the tokenizer itself, or a chat template, puts special tokens.
"""

from __future__ import annotations

import functools
import re
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparsehub.errors import DataError
from sparsehub.package.task_spec import MULTIPLE_CHOICE, TOKEN_CLASSIFICATION, TaskSpec

_SURROGATE = re.compile("[\ud800-\udfff]")  # half of a pair: JSON can hold one, UTF-8 and tokenizers cannot
# Anything but white space, control characters, and what Unicode has for nothing to be seen: what it calls
# Default_Ignorable_Code_Point, and the blank Braille pattern.
_VISIBLE = re.compile(
    "[^\\s\x00-\x1f\x7f-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e"
    "\u2060-\u206f\u2800\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U000e0000-\U000e0fff]"
)


@dataclass(frozen=True)
class Encoded:
    """One row as token ids."""

    sequences: tuple[
        Mapping[str, list[int]], ...
    ]  # one, or one per choice or text; equally long lists by tokenizer's name
    word_starts: tuple[int, ...] = ()  # for token classification, the position of each word's first token

    @functools.cached_property
    def length(self) -> int:
        """Tokens of the longest sequence."""
        return max(len(sequence["input_ids"]) for sequence in self.sequences)

    @functools.cached_property
    def tokens(self) -> int:
        """Tokens of all sequences, without padding."""
        return sum(len(sequence["input_ids"]) for sequence in self.sequences)

    @functools.cached_property
    def keys(self) -> tuple[bytes, ...]:
        """By sequence, what is equal for sequences of the same token ids, mask and token types, and only for those."""
        return tuple(
            b"".join(name.encode() + b"=" + array("q", sequence[name]).tobytes() for name in sorted(sequence))
            for sequence in self.sequences
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


def text_of(row: Mapping[str, Any], field: str) -> str:
    """The text in a field of a row; raises `DataError` where it is missing or not a string."""
    value = row.get(field)
    if not isinstance(value, str):
        found = f"fields {', '.join(map(str, row))}" if value is None else f"{type(value).__name__} in {field!r}"
        raise DataError(f"a row has no text in the field {field!r}", found=found, expected="a string")
    return value


def words_of(row: Mapping[str, Any], field: str) -> list[str]:
    """The words in a field of a row, which holds a list of strings, or a string that is split at white space.

    Raises `DataError` for anything else.
    """
    value = row.get(field)
    if isinstance(value, str):
        return value.split()
    if isinstance(value, list | tuple) and all(isinstance(word, str) for word in value):
        return list(value)
    raise DataError(
        f"a row has no words in the field {field!r}",
        found=type(value).__name__,
        expected="a list of strings or a string",
    )


def encode(
    task: TaskSpec, tokenizer: Any, rows: Sequence[Mapping[str, Any]], *, truncate: bool = True
) -> list[Encoded]:
    """The token ids of rows, in their order. truncate: cut sequences at `task.max_length`.

    Raises `DataError` for a row without the task's fields.
    """
    if not rows:
        return []
    limit = {"truncation": True, "max_length": task.max_length} if truncate else {"truncation": False}
    if task.kind == TOKEN_CLASSIFICATION:
        lead = _lead(tokenizer)
        return [_encode_words(task, tokenizer, row, lead, limit) for row in rows]
    if task.kind == MULTIPLE_CHOICE:
        return _encode_choices(task, tokenizer, rows, limit)
    columns = [[text_of(row, field) for row in rows] for field in task.text_fields]
    if task.reads_alone:
        texts = [tokenizer(column, split_special_tokens=True, verbose=False, **limit) for column in columns]
        return [Encoded(tuple(_sequence(batch, i) for batch in texts)) for i in range(len(rows))]
    batch = tokenizer(*columns, split_special_tokens=True, verbose=False, **limit)
    return [Encoded((_sequence(batch, i),)) for i in range(len(rows))]


def encode_ids(tokenizer: Any, ids: Sequence[int], limit: int | None) -> Encoded:
    """A row that is token ids already, by the tokenizer's names. limit: tokens to cut it at, None for no cut."""
    if limit is not None and len(ids) > limit:
        ids = ids[-limit:] if tokenizer.truncation_side == "left" else ids[:limit]
    same = {"attention_mask": [1] * len(ids), "token_type_ids": [0] * len(ids)}
    names = [name for name in tokenizer.model_input_names if name in same]
    return Encoded(({"input_ids": list(ids), **{name: same[name] for name in names}},))


def text_ids(tokenizer: Any, text: str, *, whole: bool) -> list[int]:
    """The token ids of one text. whole: with what the tokenizer puts around a text, its first token for instance."""
    options = {"split_special_tokens": True, "truncation": False, "verbose": False}
    ids: list[int] = tokenizer(text, add_special_tokens=whole, **options)["input_ids"]
    return ids


def special_tokens(tokenizer: Any) -> list[str]:
    """How a tokenizer's special tokens are spelt, the longest first."""
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return sorted(added | set(tokenizer.all_special_tokens), key=lambda token: (-len(token), token))


def _sequence(batch: Any, index: int) -> dict[str, list[int]]:
    return {name: batch[name][index] for name in batch}


def _encode_choices(
    task: TaskSpec, tokenizer: Any, rows: Sequence[Mapping[str, Any]], limit: Mapping[str, Any]
) -> list[Encoded]:
    contexts, choices = [], []
    for row in rows:
        context = " ".join(text_of(row, field) for field in task.text_fields)
        for field in task.choice_fields:
            contexts.append(context)
            choices.append(text_of(row, field))
    batch = tokenizer(contexts, choices, split_special_tokens=True, verbose=False, **limit)
    width = len(task.choice_fields)
    return [Encoded(tuple(_sequence(batch, i * width + j) for j in range(width))) for i in range(len(rows))]


def _encode_words(
    task: TaskSpec, tokenizer: Any, row: Mapping[str, Any], lead: str, limit: Mapping[str, Any]
) -> Encoded:
    words = [lead + word for word in words_of(row, task.text_fields[0])]
    options = {"is_split_into_words": True, "verbose": False, **limit}
    batch = tokenizer(words, split_special_tokens=True, **options)
    if len(_word_starts(batch)) < len(words):  # truncated, or a word has no tokens
        # The filler is a special token; where a word spells one, the filler is cut up too, and has tokens all the same.
        spelt = any(token in word for token in special_tokens(tokenizer) for word in words)
        batch = tokenizer(_with_tokens(tokenizer, words), split_special_tokens=spelt, **options)
    return Encoded(({name: batch[name] for name in batch},), _word_starts(batch))


def _word_starts(batch: Any) -> tuple[int, ...]:
    starts: dict[int, int] = {}
    for place, word in enumerate(batch.word_ids()):
        if word is not None:
            starts.setdefault(word, place)
    return tuple(starts[word] for word in sorted(starts))


def _lead(tokenizer: Any) -> str:
    """What to put before a lone word so that it gets the tokens that it has inside a sentence: a space, or nothing.

    Byte-level vocabularies count the space before a word as part of it.
    """
    inside = tokenizer.tokenize("a b")[-1]
    return (
        "" if tokenizer(["a", "b"], is_split_into_words=True, add_special_tokens=False).tokens()[-1] == inside else " "
    )


def _with_tokens(tokenizer: Any, words: list[str]) -> list[str]:
    """The words, with a filler for those that the tokenizer gives no token, so that each word gets a prediction."""
    pieces = tokenizer(words, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
    filler = tokenizer.unk_token or tokenizer.pad_token
    return [word if ids else filler for word, ids in zip(words, pieces, strict=True)]


def collate(tokenizer: Any, rows: Sequence[Encoded], device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """Pad rows to one batch of tensors, by the tokenizer's names.

    Shapes: [rows, length], or [rows, sequences, length] where rows have several.
    """
    flat = pad([sequence for row in rows for sequence in row.sequences], tokenizer, device)
    return {name: by_choice(tensor, rows) for name, tensor in flat.items()}


def by_choice(tensor: Tensor, rows: Sequence[Encoded]) -> Tensor:
    """A tensor of [sequences, length], as [rows, sequences, length] where rows have several."""
    return tensor.view(len(rows), -1, tensor.shape[-1]) if len(rows[0].sequences) > 1 else tensor


def pad(
    sequences: Sequence[Mapping[str, list[int]]], tokenizer: Any, device: torch.device | str = "cpu"
) -> dict[str, Tensor]:
    """Pad sequences to one length: tensors of [sequences, length], by the tokenizer's names."""
    length = max(len(sequence["input_ids"]) for sequence in sequences)
    fill = {"input_ids": tokenizer.pad_token_id, "token_type_ids": tokenizer.pad_token_type_id, "attention_mask": 0}
    left = tokenizer.padding_side == "left"
    return {
        name: torch.tensor(
            [_pad(sequence[name], length, fill.get(name, 0), left) for sequence in sequences],
            dtype=torch.long,
            device=device,
        )
        for name in sequences[0]
    }


def _pad(ids: list[int], length: int, fill: int, left: bool) -> list[int]:
    padding = [fill] * (length - len(ids))
    return padding + ids if left else ids + padding
