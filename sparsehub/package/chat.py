"""Renders conversations as text by the backbone's own chat template, for training and serving alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sparsehub.errors import DataError


def check_messages(messages: Sequence[Any], tokenizer: Any) -> None:
    """Raises `DataError` unless these are messages with role and text, and the tokenizer has a chat template."""
    if getattr(tokenizer, "chat_template", None) is None:
        raise DataError("the backbone's tokenizer has no chat template", fix="use rows with prompt and completion")
    for message in messages:
        known = isinstance(message, Mapping) and {"role", "content"} <= set(message)
        if not known or not isinstance(message["role"], str) or not isinstance(message["content"], str):
            raise DataError("not a message", found=repr(message)[:80], expected='{"role": "user", "content": "..."}')


def render(messages: Sequence[Mapping[str, Any]], tokenizer: Any, *, answer: bool) -> str:
    """The text of a conversation. answer: whether it ends with the opening of the assistant's next message."""
    plain = [{"role": message["role"], "content": message["content"]} for message in messages]
    text = tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=answer)
    assert isinstance(text, str)  # it was asked for text
    return text
