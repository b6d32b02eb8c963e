"""The shapes of text generation: OpenAI's completions and chat completions, asked and answered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from sparsehub.engine import Completion, Generation, Sampling, TextDelta
from sparsehub.engine.generation import TokenLog
from sparsehub.errors import RequestError

MOST_TEXTS = 128  # of one request: prompts times n


class StreamOptions(BaseModel):
    """include_usage: one more message at the end of a stream, with the tokens that it took."""

    model_config = ConfigDict(extra="forbid")

    include_usage: bool = False


class ProseBody(BaseModel):
    """What both kinds of request have. What is not here is refused: a setting that nothing reads would be a lie."""

    model_config = ConfigDict(extra="forbid")

    model: str = Field(min_length=1, max_length=300)
    temperature: float = 1.0
    top_p: float = 1.0
    n: int = Field(default=1, ge=1, le=MOST_TEXTS)
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    user: str | None = None  # clients name their users; nobody asks here

    def samplings(self, max_tokens: int | None, logprobs: int | None) -> list[Sampling]:
        """Of the n texts of one prompt; each has a seed of its own, or all would be the same."""
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        seeds = [None if self.seed is None else self.seed + i for i in range(self.n)]
        return [Sampling(max_tokens, self.temperature, self.top_p, seed, stop, logprobs) for seed in seeds]


class CompletionBody(ProseBody):
    """prompt: a text, several, or token ids; logprobs: how many alternatives to tell of each token."""

    prompt: str | list[str] | list[int] | list[list[int]]
    max_tokens: int = 16
    logprobs: int | None = Field(default=None, ge=0, le=5)

    @property
    def prompts(self) -> list[str | list[int]]:
        if isinstance(self.prompt, str) or (self.prompt and isinstance(self.prompt[0], int)):
            return [self.prompt]  # type: ignore[list-item]
        return list(self.prompt)  # type: ignore[arg-type]


class ChatBody(ProseBody):
    """max_tokens, max_completion_tokens: the same, by its old and its new name; without either as many as fit."""

    messages: list[dict[str, Any]]
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    logprobs: bool = False
    top_logprobs: int = Field(default=0, ge=0, le=20)

    @property
    def most_tokens(self) -> int | None:
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens

    @property
    def told(self) -> int | None:
        """Alternatives to tell of each token; None for no probabilities."""
        return self.top_logprobs if self.logprobs else None

    @property
    def turns(self) -> list[dict[str, Any]]:
        """The messages with plain text in them; raises `RequestError` for pictures and sounds."""
        return [{**message, "content": _plain(message.get("content"))} for message in self.messages]


def _plain(content: Any) -> Any:
    if not isinstance(content, list):
        return content
    if any(not isinstance(part, Mapping) or part.get("type") != "text" for part in content):
        raise RequestError("a message holds other things than text", expected='parts of type "text"')
    return "".join(str(part.get("text", "")) for part in content)


class CompletionShape:
    """Answers of `/v1/completions`."""

    kind, whole, part = "cmpl", "text_completion", "text_completion"

    def choice(self, index: int, done: Completion) -> dict[str, Any]:
        return {"index": index, "text": done.text, "logprobs": _old_logs(done.logs, 0), "finish_reason": done.finish}

    def opening(self, index: int) -> dict[str, Any] | None:
        """What a stream says of a text before it begins."""
        del index
        return None

    def delta(self, index: int, piece: TextDelta, offset: int) -> dict[str, Any]:
        logs = _old_logs(piece.logs, offset)
        return {"index": index, "text": piece.text, "logprobs": logs, "finish_reason": piece.finish}


class ChatShape:
    """Answers of `/v1/chat/completions`."""

    kind, whole, part = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def choice(self, index: int, done: Completion) -> dict[str, Any]:
        message = {"role": "assistant", "content": done.text}
        return {"index": index, "message": message, "logprobs": _new_logs(done.logs), "finish_reason": done.finish}

    def opening(self, index: int) -> dict[str, Any] | None:
        """What a stream says of a text before it begins."""
        delta = {"role": "assistant", "content": ""}
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def delta(self, index: int, piece: TextDelta, offset: int) -> dict[str, Any]:
        del offset
        delta = {"content": piece.text} if piece.text else {}
        return {"index": index, "delta": delta, "logprobs": _new_logs(piece.logs), "finish_reason": piece.finish}


Shape = CompletionShape | ChatShape


def _old_logs(logs: Sequence[TokenLog], offset: int) -> dict[str, Any] | None:
    """offset: characters that were said before."""
    if not logs:
        return None
    offsets = [offset + sum(len(log.text) for log in logs[:place]) for place in range(len(logs))]
    return {
        "tokens": [log.text for log in logs],
        "token_logprobs": [log.logprob for log in logs],
        "top_logprobs": [{text: logprob for _, text, logprob in log.top} for log in logs],
        "text_offset": offsets,
    }


def _new_logs(logs: Sequence[TokenLog]) -> dict[str, Any] | None:
    if not logs:
        return None
    tops = [[_token(text, logprob) for _, text, logprob in log.top] for log in logs]
    entries = zip(logs, tops, strict=True)
    return {"content": [{**_token(log.text, log.logprob), "top_logprobs": top} for log, top in entries]}


def _token(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode(errors="replace"))}


def usage(generations: Sequence[Generation], n: int) -> dict[str, int]:
    """Tokens in and out. A prompt counts once, however many texts it got."""
    prompt = sum(len(generation.prompt) for generation in generations[::n])
    said = sum(len(generation.tokens) for generation in generations)
    return {"prompt_tokens": prompt, "completion_tokens": said, "total_tokens": prompt + said}
