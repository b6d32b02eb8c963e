"""Requests and responses of text generation: OpenAI's completions and chat completions, whole and streamed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from serving.protocol import neutral_fields
from serving.protocol.base import ApiModel, UsageInfo
from serving.protocol.request_model import FieldError, ListOf, OneTask, RequestModel, Values
from sparsehub.engine import Sampling

MOST_TEXTS = 128  # of one request: prompts times n


# requests


class StreamOptions(RequestModel):
    """What a stream holds beside its text."""

    neutral: ClassVar[Mapping[str, Values]] = neutral_fields.STREAM_OPTIONS

    include_usage: bool = False
    """One more chunk at the end, with the tokens that the request took."""


class GenerationRequest(RequestModel):
    """What both kinds of request have. What is not here is refused: a setting that nothing reads would be a lie."""

    neutral: ClassVar[Mapping[str, Values]] = neutral_fields.GENERATION
    model: OneTask
    """A task, or the backbone."""
    temperature: float = 1.0
    top_p: float = 1.0
    n: int = Field(default=1, ge=1, le=MOST_TEXTS)
    """Texts for each prompt."""
    seed: int | None = Field(None, ge=-(1 << 63), lt=1 << 63)
    stop: str | ListOf[str] | None = None
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()

    def samplings(self, max_tokens: int | None, logprobs: int | None) -> list[Sampling]:
        """Of the n texts of one prompt; each has a seed of its own, or all would be the same."""
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        seeds = [None if self.seed is None else self.seed + i for i in range(self.n)]
        return [Sampling(max_tokens, self.temperature, self.top_p, seed, stop, logprobs) for seed in seeds]


class CompletionRequest(GenerationRequest):
    """A text to go on from."""

    neutral: ClassVar[Mapping[str, Values]] = neutral_fields.COMPLETION
    prompt: str | ListOf[str] | ListOf[int] | ListOf[ListOf[int]]
    """A text, several, token ids, or several lists of token ids."""
    max_tokens: int = Field(16, lt=1 << 31)
    logprobs: int | None = Field(default=None, ge=0, le=5)
    """How many alternatives to return for each token."""

    @property
    def prompts(self) -> list[str | list[int]]:
        if isinstance(self.prompt, str) or (self.prompt and isinstance(self.prompt[0], int)):
            return [self.prompt]  # type: ignore[list-item]
        return list(self.prompt)  # type: ignore[arg-type]


class RequestMessage(RequestModel):
    """One turn of a conversation."""

    neutral: ClassVar[Mapping[str, Values]] = neutral_fields.MESSAGE
    role: str
    """One that the backbone's chat template knows."""
    content: str | ListOf[dict[str, Any]]
    """A text, or a list of parts of type `text`."""
    name: str | None = None
    """Of who speaks, for chat templates that use it."""
    tool_call_id: str | None = None
    """As `name`."""

    @property
    def turn(self) -> dict[str, str]:
        """What the chat template gets, with plain text in it; raises `FieldError` for pictures and sounds."""
        extras = {"name": self.name, "tool_call_id": self.tool_call_id}
        given = {name: value for name, value in extras.items() if value is not None}
        return {"role": self.role, "content": _plain(self.content), **given}


class ChatCompletionRequest(GenerationRequest):
    """A conversation to answer."""

    neutral: ClassVar[Mapping[str, Values]] = neutral_fields.CHAT
    messages: ListOf[RequestMessage]
    max_tokens: int | None = Field(None, lt=1 << 31)
    """The old name of `max_completion_tokens`."""
    max_completion_tokens: int | None = Field(None, lt=1 << 31)
    """As many as fit where neither is given."""
    logprobs: bool = False
    top_logprobs: int = Field(default=0, ge=0, le=20)
    """How many alternatives to return for each token, with `logprobs`."""

    @property
    def most_tokens(self) -> int | None:
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens

    @property
    def alternatives(self) -> int | None:
        """To return for each token; None for no probabilities. Raises `FieldError` for some of them without any."""
        if self.top_logprobs and not self.logprobs:
            raise FieldError("top_logprobs", "top_logprobs needs logprobs", expected='"logprobs": true beside it')
        return self.top_logprobs if self.logprobs else None

    @property
    def turns(self) -> list[dict[str, str]]:
        """The messages with plain text in them; raises `FieldError`."""
        return [message.turn for message in self.messages]


def _plain(content: str | list[dict[str, Any]]) -> str:
    if isinstance(content, str):
        return content
    found = next((part.get("type") for part in content if part.get("type") != "text"), "text")
    if found != "text" or any(not isinstance(part.get("text"), str) for part in content):
        problem = "a message holds other things than text"
        raise FieldError("messages", problem, found=repr(found)[:100], expected='parts of type "text"')
    return "".join(part["text"] for part in content)


# responses


class GeneratedResponse(ApiModel):
    """What stands before the choices of every answer and every chunk. The digest says which package gave them."""

    id: str
    object: str
    created: int
    """Seconds since 1970."""
    model: str
    """As the request said it."""
    task: str | None = None
    """`name@version`; absent where the plain backbone answers."""
    digest: str | None = None


class CompletionLogprobs(ApiModel):
    """One entry of every list for each token."""

    tokens: list[str]
    """A part of a character is written as its bytes: `bytes:\\xf0\\x9f`."""
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    """The likeliest tokens in its place; of several with the same text all but the first are named `token_id:N`."""
    text_offset: list[int]
    """Where the token begins in the text as it is sent, in characters."""


class CompletionChoice(ApiModel):
    """One text, or the next piece of one."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: str | None
    """`stop` or `length`; null in all chunks but a text's last one."""


class CompletionResponse(GeneratedResponse):
    """n texts of each prompt, in order."""

    object: Literal["text_completion"]
    choices: list[CompletionChoice]
    usage: UsageInfo


class CompletionChunk(GeneratedResponse):
    """One event of a stream. The stream ends with the line `data: [DONE]`, or after an error's event without it."""

    object: Literal["text_completion"]
    choices: list[CompletionChoice]
    """One; none in the chunk that holds the usage."""
    usage: UsageInfo | None = None
    """In the last chunk, where `stream_options.include_usage` asks for it."""


class TokenLogprob(ApiModel):
    """One of the likeliest tokens in a token's place."""

    token: str
    logprob: float
    bytes: list[int]
    """The token's own, which may be a part of a character; those of all tokens together are the text in UTF-8."""


class ChosenToken(TokenLogprob):
    """The token that was chosen."""

    top_logprobs: list[TokenLogprob]
    """The likeliest in its place."""


class ChatLogprobs(ApiModel):
    """One entry for each token."""

    content: list[ChosenToken]


class ChatMessage(ApiModel):
    """The answer to a conversation."""

    role: Literal["assistant"]
    content: str


class ChatChoice(ApiModel):
    """One answer."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: str
    """`stop` or `length`."""


class ChatCompletionResponse(GeneratedResponse):
    """n answers to one conversation."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    usage: UsageInfo


class ChatDelta(ApiModel):
    """What is added to a message."""

    role: Literal["assistant"] | None = None
    """In the first chunk of each answer."""
    content: str | None = None


class ChatChunkChoice(ApiModel):
    """The next piece of one answer."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: str | None
    """`stop` or `length`; null in all chunks but an answer's last one."""


class ChatCompletionChunk(GeneratedResponse):
    """One event of a stream. The stream ends with the line `data: [DONE]`, or after an error's event without it."""

    object: Literal["chat.completion.chunk"]
    choices: list[ChatChunkChoice]
    """One; none in the chunk that holds the usage."""
    usage: UsageInfo | None = None
    """In the last chunk, where `stream_options.include_usage` asks for it."""
