"""Renders conversations by the backbone's own chat template and tokenises them, for training and serving alike."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from sparsehub.errors import DataError
from sparsehub.package.encoding import special_tokens, text_ids
from sparsehub.package.time_limit import time_limit

ROLES = ("system", "user", "assistant")
NAMED_ROLES = ("developer", "tool", "function")  # for chat templates that name them
_RENDERED = ("name", "tool_call_id")  # beside role and content, for templates that use them
TEMPLATE = "<template>"  # the file name of what Jinja compiles
RENDER_SECONDS = 2.0  # that a template may compute; a long conversation takes some milliseconds
_PRIVATE = 0xF0000  # the first of 65,000 characters that stand for nothing


class Conversation:
    """Messages that a chat template can render. Training cuts it into segments, serving answers it.

    A special token that a message spells is text like any other: while the template writes its own, a private
    character stands in the message for it, and `token_ids` puts the spelling's tokens there. Raises `DataError` unless
    these are messages with role and text, and the tokenizer has a chat template that knows the roles.
    """

    def __init__(self, messages: Sequence[Any], tokenizer: Any):
        _check_messages(messages, tokenizer)
        self._tokenizer = tokenizer
        kept = [{name: message.get(name) for name in ("role", "content", *_RENDERED)} for message in messages]
        given = [{name: text for name, text in message.items() if isinstance(text, str)} for message in kept]
        self._stand_ins = _stand_ins([text for message in given for text in message.values()], tokenizer)
        self._messages = [{name: self._protected(text) for name, text in message.items()} for message in given]

    def __len__(self) -> int:
        return len(self._messages)

    def render(self, count: int, *, answer: bool) -> str:
        """The text of the first `count` messages, for `token_ids`. answer: whether it ends with the opening of the
        assistant's next message. Raises `DataError` where the template leaves a message out, or
        does not come to an end."""
        messages = self._messages[:count]
        with time_limit(RENDER_SECONDS, "the chat template", TEMPLATE):
            text = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=answer)
        assert isinstance(text, str)  # it was asked for text
        for number, message in enumerate(messages):
            if message["role"] != "assistant" and message["content"].strip() not in text:
                found = f"message {number}, of the role {message['role']}"
                raise DataError("the chat template leaves a message out", found=found, fix="leave it out, or move it")
        return text

    def token_ids(self, text: str) -> list[int]:
        """The token ids of what `render` gave, or of a piece of it."""
        ids: list[int] = []
        for piece in self._pieces(text):
            spelling = self._stand_ins.get(piece)
            if spelling is None:
                ids += self._tokenizer(piece, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
            else:
                ids += text_ids(self._tokenizer, spelling, whole=False)
        return ids

    def _pieces(self, text: str) -> list[str]:
        if not self._stand_ins:
            return [text]
        return [piece for piece in re.split(f"([{''.join(self._stand_ins)}])", text) if piece]

    def _protected(self, text: str) -> str:
        for character, spelling in self._stand_ins.items():
            text = text.replace(spelling, character)
        return text


def _stand_ins(texts: Sequence[str], tokenizer: Any) -> dict[str, str]:
    """A character that is in no text, for every special token that is spelt in one; the longest tokens first."""
    spelt = [token for token in special_tokens(tokenizer) if any(token in text for text in texts)]
    if not spelt:
        return {}
    used = set().union(*texts)
    free = (character for code in range(_PRIVATE, 0xFFFFE) if (character := chr(code)) not in used)
    return {next(free): token for token in spelt}


def _check_messages(messages: Sequence[Any], tokenizer: Any) -> None:
    template = getattr(tokenizer, "chat_template", None)
    if template is None:
        raise DataError("the backbone's tokenizer has no chat template", fix="use rows with prompt and completion")
    for message in messages:
        known = isinstance(message, Mapping) and {"role", "content"} <= set(message)
        if not known or not isinstance(message["role"], str) or not isinstance(message["content"], str):
            raise DataError("not a message", found=repr(message)[:80], expected='{"role": "user", "content": "..."}')
        if message["role"] not in (roles := _roles(str(template))):
            raise DataError(
                "the chat template has no such role", found=repr(message["role"])[:80], expected=", ".join(roles)
            )


@functools.lru_cache(maxsize=16)
def _roles(template: str) -> tuple[str, ...]:
    """Those of every conversation, and the others that the template names; it may still refuse one."""
    return (*ROLES, *(role for role in NAMED_ROLES if re.search(rf"(['\"]){role}\1", template)))
