"""From generated texts to the choices of OpenAI's two APIs: one formatter each, with the same methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from serving.protocol.base import UsageInfo
from serving.protocol.openai import (
    ChatChoice,
    ChatChunkChoice,
    ChatCompletionChunk,
    ChatCompletionResponse,
    ChatDelta,
    ChatLogprobs,
    ChatMessage,
    ChosenToken,
    CompletionChoice,
    CompletionChunk,
    CompletionLogprobs,
    CompletionResponse,
    TokenLogprob,
)
from sparsehub.engine import Completion, TextDelta
from sparsehub.engine.generation import TokenAlternative, TokenLog

Head = Mapping[str, Any]  # id, created, model, task and digest: of a whole answer, or of all chunks of one


class CompletionFormatter:
    """Answers of `/v1/completions`. prefix: what their ids begin with."""

    prefix = "cmpl"

    def response(self, head: Head, texts: Sequence[Completion], used: UsageInfo) -> CompletionResponse:
        choices = [
            CompletionChoice(
                index=index, text=text.text, logprobs=_completion_logprobs(text.logs), finish_reason=text.finish
            )
            for index, text in enumerate(texts)
        ]
        return CompletionResponse(**head, object="text_completion", choices=choices, usage=used)

    def opening(self, head: Head, index: int) -> CompletionChunk | None:
        """What a stream says of a text before it begins."""
        del head, index
        return None

    def chunk(self, head: Head, index: int, piece: TextDelta) -> CompletionChunk:
        """The next part of a text."""
        logs = _completion_logprobs(piece.logs)
        choice = CompletionChoice(index=index, text=piece.text, logprobs=logs, finish_reason=piece.finish)
        return CompletionChunk(**head, object="text_completion", choices=[choice])

    def closing(self, head: Head, used: UsageInfo) -> CompletionChunk:
        """What a stream says after all texts, where the request wants to know what they took."""
        return CompletionChunk(**head, object="text_completion", choices=[], usage=used)


class ChatFormatter:
    """Answers of `/v1/chat/completions`. prefix: what their ids begin with."""

    prefix = "chatcmpl"

    def response(self, head: Head, texts: Sequence[Completion], used: UsageInfo) -> ChatCompletionResponse:
        choices = [
            ChatChoice(
                index=index,
                message=ChatMessage(role="assistant", content=text.text),
                logprobs=_chat_logprobs(text.logs),
                finish_reason=text.finish,
            )
            for index, text in enumerate(texts)
        ]
        return ChatCompletionResponse(**head, object="chat.completion", choices=choices, usage=used)

    def opening(self, head: Head, index: int) -> ChatCompletionChunk | None:
        """What a stream says of a text before it begins."""
        delta = ChatDelta(role="assistant", content="")
        return _chat_chunk(head, ChatChunkChoice(index=index, delta=delta, logprobs=None, finish_reason=None))

    def chunk(self, head: Head, index: int, piece: TextDelta) -> ChatCompletionChunk:
        """The next part of an answer."""
        delta = ChatDelta(content=piece.text) if piece.text else ChatDelta()
        logs = _chat_logprobs(piece.logs)
        return _chat_chunk(head, ChatChunkChoice(index=index, delta=delta, logprobs=logs, finish_reason=piece.finish))

    def closing(self, head: Head, used: UsageInfo) -> ChatCompletionChunk:
        """What a stream says after all texts, where the request wants to know what they took."""
        return ChatCompletionChunk(**head, object="chat.completion.chunk", choices=[], usage=used)


Formatter = CompletionFormatter | ChatFormatter


def _chat_chunk(head: Head, choice: ChatChunkChoice) -> ChatCompletionChunk:
    return ChatCompletionChunk(**head, object="chat.completion.chunk", choices=[choice])


def _completion_logprobs(logs: Sequence[TokenLog]) -> CompletionLogprobs | None:
    if not logs:
        return None
    return CompletionLogprobs(
        tokens=[_shown(log.bytes) for log in logs],
        token_logprobs=[log.logprob for log in logs],
        top_logprobs=[_by_text(log.top) for log in logs],
        text_offset=[log.offset for log in logs],
    )


def _by_text(alternatives: Sequence[TokenAlternative]) -> dict[str, float]:
    """The likeliest first. Of tokens with the same bytes the others stand under their ids, as vLLM writes them."""
    found: dict[str, float] = {}
    for one in alternatives:
        text = _shown(one.bytes)
        found[f"token_id:{one.token}" if text in found else text] = one.logprob
    return found


def _chat_logprobs(logs: Sequence[TokenLog]) -> ChatLogprobs | None:
    if not logs:
        return None
    return ChatLogprobs(content=[_chosen(log) for log in logs])


def _chosen(log: TokenLog) -> ChosenToken:
    tops = [TokenLogprob(token=_shown(one.bytes), logprob=one.logprob, bytes=list(one.bytes)) for one in log.top]
    return ChosenToken(token=_shown(log.bytes), logprob=log.logprob, bytes=list(log.bytes), top_logprobs=tops)


def _shown(data: bytes) -> str:
    """A token as text; where it is a part of a character, its bytes, as OpenAI's completions write them."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
