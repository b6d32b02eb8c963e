"""One text to generate: how it is sampled, its parts while they come, and the whole."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from sparsehub.engine.fair_share import ANYBODYS, Flow
from sparsehub.engine.pending_request import Prepared
from sparsehub.engine.task_handle import TaskHandle
from sparsehub.engine.task_registry import TaskInfo
from sparsehub.errors import RequestError

log = logging.getLogger("sparsehub")
STOP, LENGTH = "stop", "length"
MOST_STOPS = 16
MOST_LOGPROBS = 20


@dataclass(frozen=True)
class Sampling:
    """How the tokens of a text are chosen; the fields are those of OpenAI's API. Raises `RequestError` for a value out
    of range."""

    max_tokens: int | None = 128  # None: as many as the context and the generator's limit allow
    temperature: float = 0.0  # 0 to 2; 0: always the likeliest token
    top_p: float = 1.0  # above 0 to 1: only of the likeliest tokens that hold this share of the probability
    seed: int | None = None  # the same one gives the same text again, whatever else runs; None: a random one
    stop: tuple[str, ...] = ()  # the text ends before the first of these
    logprobs: int | None = None  # how many of the likeliest tokens each place reports; None: no probabilities at all

    def __post_init__(self) -> None:
        _within("max_tokens", 1 if self.max_tokens is None else self.max_tokens, 1, 1 << 20)
        _within("temperature", self.temperature, 0.0, 2.0)
        _within("top_p", self.top_p, 0.0, 1.0)
        _within("seed", self.seed or 0, -(1 << 63), (1 << 63) - 1)
        _within("logprobs", self.logprobs or 0, 0, MOST_LOGPROBS)
        if self.top_p == 0.0:
            raise RequestError("top_p must be above zero", fix="for the likeliest token alone set temperature to 0")
        if len(self.stop) > MOST_STOPS or any(not text for text in self.stop):
            raise RequestError("stop texts are too many or empty", expected=f"at most {MOST_STOPS}, none empty")


def _within(name: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:  # nor is NaN
        raise RequestError(f"{name} is out of range", found=str(value)[:80], expected=f"{least:g} to {most:g}")


class TokenAlternative(NamedTuple):
    """One of the likeliest tokens in a token's place."""

    token: int
    bytes: bytes  # that it stands for; they may be a part of a character
    logprob: float  # under the model, at temperature 1


@dataclass(frozen=True)
class TokenLog:
    """A token of a text with its log probability, where `Sampling.logprobs` wants it."""

    token: int
    bytes: bytes  # that it stands for; they may be a part of a character
    logprob: float  # under the model, at temperature 1
    offset: int  # where it begins in the text, in characters
    top: tuple[TokenAlternative, ...] = ()


@dataclass(frozen=True)
class TextDelta:
    """The next part of a text, as `Generation.pieces` yields it."""

    text: str
    tokens: int = 0  # that it took
    logs: tuple[TokenLog, ...] = ()
    finish: str | None = None  # `stop` or `length` with the last part, None before


@dataclass(frozen=True)
class Completion:
    """A whole text; the result of a `Generation`."""

    text: str
    tokens: tuple[int, ...]  # that were generated, an end token included
    finish: str  # `stop` or `length`
    logs: tuple[TokenLog, ...] = ()


class TextListener(Protocol):
    """What gets the texts of a request part by part; serving streams with it. Called in the generator's thread: the
    next step waits for it."""

    def hear(self, number: int, piece: TextDelta | None) -> None:
        """The next part of a text, or None after its last. number: of the text in its request."""


@dataclass(eq=False)
class PreparedGeneration(Prepared):
    """Prompts that were checked and tokenised. `Engine.prepare_generation` makes it, `Engine.submit_generation` queues
    it."""

    prompts: list[list[int]]  # token ids
    lengths: list[int]  # the most tokens that each text may get
    samplings: Sequence[Sampling]  # one for each prompt

    @property
    def items(self) -> int:
        """Prompts."""
        return len(self.prompts)

    @property
    def tokens(self) -> int:
        """Tokens of all prompts, and the most that the texts may come to."""
        return sum(map(len, self.prompts)) + sum(self.lengths)


@dataclass(eq=False)
class Generation:
    """One text that waits, runs, or is done; `Engine.generate` gives it. Any thread may read it and cancel it."""

    id: str
    prompt: tuple[int, ...]
    max_tokens: int  # that are generated at most
    sampling: Sampling
    task: TaskInfo | None  # of the very package that answers; None for the plain backbone
    handle: TaskHandle | None  # its reference to that package, until it is done
    deadline: float | None = None  # on the monotonic clock, until which it may wait to be admitted
    number: int = 0  # of this text in its request, by which its listener knows it
    listener: TextListener | None = None  # told of every part, besides `pieces`
    future: Future[Completion] = field(default_factory=Future)
    tokens: list[int] = field(default_factory=list)  # generated so far
    logs: list[TokenLog] = field(default_factory=list)
    cancelled: bool = False
    arrived: float = 0.0  # when it was queued, on the monotonic clock
    changed: threading.Event = field(default_factory=threading.Event)  # set by `cancel`; the generator waits for it
    flow: Flow = ANYBODYS
    _pieces: queue.SimpleQueue[TextDelta | None] = field(default_factory=queue.SimpleQueue)

    @property
    def digest(self) -> str | None:
        """Of its task; None for the plain backbone."""
        return self.task.digest if self.task is not None else None

    @property
    def length(self) -> int:
        """Tokens that it may come to, prompt and text together."""
        return len(self.prompt) + self.max_tokens

    def __post_init__(self) -> None:
        self.future.set_running_or_notify_cancel()  # `cancel` below ends it: nobody would notice the future's own

    def cancel(self) -> None:
        """End it: its pages in the cache are freed before the next step, and `result` raises `CancelledError`."""
        self.cancelled = True
        self.changed.set()

    def result(self, timeout: float | None = None) -> Completion:
        """Wait for the whole text, up to `timeout` seconds; raises why it could not be generated."""
        return self.future.result(timeout)

    def pieces(self) -> Iterator[TextDelta]:
        """The text part by part, as it comes; raises at the end why it broke off. To be read once."""
        while (piece := self._pieces.get()) is not None:
            yield piece
        error = self.future.exception()
        if error is not None:
            raise error

    def emit(self, piece: TextDelta | None) -> None:
        """Hand the next part, or None after the last one, to the reader; the generator calls it."""
        self._pieces.put(piece)
        if self.listener is None:
            return
        try:
            self.listener.hear(self.number, piece)
        except Exception as error:  # the listener's own fault: the texts of others go on
            log.exception("a listener to generated text failed", exc_info=error)
