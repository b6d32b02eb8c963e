"""From the tokens of a running text to its parts: decoded step by step, with log probabilities, until it is done."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sparsehub.engine.generation.detokenizer import TextStream
from sparsehub.engine.generation.request import (
    LENGTH,
    STOP,
    Completion,
    Generation,
    TextDelta,
    TokenAlternative,
    TokenLog,
)
from sparsehub.engine.generation.sampling import SampledToken
from sparsehub.engine.generation.token_bytes import TokenBytes


class OutputProcessor:
    """Takes the tokens of one `Generation` from the `Generator`, and emits the text that is certain.

    token_bytes: of the tokenizer; ends: tokens that end the text.
    """

    def __init__(self, generation: Generation, tokenizer: Any, token_bytes: TokenBytes, ends: Sequence[int]):
        self.finish: str | None = None  # why the text ended, `stop` or `length`; None while it goes on
        self._ends = ends
        self._generation, self._bytes = generation, token_bytes
        self._stream = TextStream(tokenizer, generation.sampling.stop)
        self._text: list[str] = []
        self._emitted = 0  # characters of the text
        self._pending_logs: list[TokenLog] = []  # of tokens of which no text is emitted yet
        self._pending = 0  # tokens since the last part was emitted

    def push(self, token: int, chosen: SampledToken | None) -> None:
        """Take the next token. chosen: its log probabilities, where they are wanted."""
        generation = self._generation
        generation.tokens.append(token)
        self._pending += 1
        if chosen is not None:
            self._pending_logs.append(self._log(token, chosen))
        text = self._stream.push(token)
        if self._stream.stopped or token in self._ends:
            self.finish = STOP
        elif len(generation.tokens) >= generation.max_tokens:
            self.finish = LENGTH
        if self.finish is not None and not self._stream.stopped:
            text += self._stream.flush()
        if text or self.finish is not None:
            self._emit(text)

    def completion(self) -> Completion:
        """The whole text, once it is done."""
        assert self.finish is not None
        generation = self._generation
        return Completion("".join(self._text), tuple(generation.tokens), self.finish, tuple(generation.logs))

    def _emit(self, text: str) -> None:
        self._text.append(text)
        self._emitted += len(text)
        logs = self._logs_of_emitted()
        self._generation.logs.extend(logs)
        self._generation.emit(TextDelta(text, self._pending, tuple(logs), self.finish))
        self._pending = 0

    def _logs_of_emitted(self) -> list[TokenLog]:
        """Take the logs of tokens that begin in the text so far: a stop text's, which is never emitted, are dropped."""
        if self.finish is not None and not self._stream.stopped:
            logs, self._pending_logs = self._pending_logs, []  # with an end token's, which has no text
            return logs
        logs = [log for log in self._pending_logs if log.offset < self._emitted]
        self._pending_logs = self._pending_logs[len(logs) :]
        return logs

    def _log(self, token: int, chosen: SampledToken) -> TokenLog:
        """Of the next token, before its text is decoded."""
        begins = len(self._generation.tokens) == 1
        top = tuple(TokenAlternative(t, self._bytes.of(t, begins=begins), logprob) for t, logprob in chosen.top)
        return TokenLog(token, self._bytes.of(token, begins=begins), chosen.logprob, self._stream.decoded, top)


def end_tokens(tokenizer: Any, model: Any) -> list[int]:
    """Tokens at which a text ends: the tokenizer's, and those that the model's generation settings name."""
    named = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    found = [tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])]
    return sorted({token for token in found if isinstance(token, int) and token >= 0})
