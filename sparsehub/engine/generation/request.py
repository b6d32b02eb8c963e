"""What is asked of a generator, and what it says back."""

from __future__ import annotations

import logging
import math
import queue
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field

from sparsehub.engine.task_handle import TaskHandle
from sparsehub.engine.task_registry import TaskInfo
from sparsehub.errors import RequestError

log = logging.getLogger("sparsehub")
STOP, LENGTH = "stop", "length"
MOST_STOPS = 16
MOST_LOGPROBS = 20


@dataclass(frozen=True)
class Sampling:
    """How text is chosen.

    max_tokens: None for as many as the context and the generator's limit allow; temperature 0: always the likeliest
    token; top_p: of the tokens that hold this share of the probability; seed: the same one gives the same text again,
    whatever else runs; stop: texts before which it ends; logprobs: how many of the likeliest tokens are told of each
    place, None for no probabilities at all.
    """

    max_tokens: int | None = 128
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None

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
    if not math.isfinite(value) or not least <= value <= most:
        raise RequestError(f"{name} is out of range", found=value, expected=f"{least:g} to {most:g}")


@dataclass(frozen=True)
class TokenLog:
    """A token that was chosen, its log probability under the model (at temperature 1), and the likeliest in its place:
    (token, text, log probability), the likeliest first."""

    token: int
    text: str
    logprob: float
    top: tuple[tuple[int, str, float], ...] = ()


@dataclass(frozen=True)
class TextDelta:
    """The next part of a text. tokens: how many it took; finish: `stop` or `length` with the last one."""

    text: str
    tokens: int = 0
    logs: tuple[TokenLog, ...] = ()
    finish: str | None = None


@dataclass(frozen=True)
class Completion:
    """A whole text. tokens: that were generated, an end token included; finish: `stop` or `length`."""

    text: str
    tokens: tuple[int, ...]
    finish: str
    logs: tuple[TokenLog, ...] = ()


@dataclass(eq=False)
class Generation:
    """One sequence that waits, runs, or is done. Any thread may read it and cancel it.

    task, handle: the very package that answers, None for the plain backbone; deadline: on the monotonic clock, until
    which it may wait; listen: called with every piece in the generator's thread, and with None after the last.
    """

    id: str
    prompt: tuple[int, ...]
    max_tokens: int
    sampling: Sampling
    task: TaskInfo | None
    handle: TaskHandle | None
    deadline: float | None = None
    listen: Callable[[TextDelta | None], None] = lambda _: None
    future: Future[Completion] = field(default_factory=Future)
    tokens: list[int] = field(default_factory=list)
    logs: list[TokenLog] = field(default_factory=list)
    cancelled: bool = False
    arrived: float = 0.0
    wake: Callable[[], None] = lambda: None
    _pieces: queue.SimpleQueue[TextDelta | None] = field(default_factory=queue.SimpleQueue)

    @property
    def digest(self) -> str | None:
        return self.task.digest if self.task is not None else None

    @property
    def length(self) -> int:
        """Tokens that it may come to."""
        return len(self.prompt) + self.max_tokens

    def __post_init__(self) -> None:
        self.future.set_running_or_notify_cancel()  # it ends by `cancel` below: the future's own would not be heard

    def cancel(self) -> None:
        """Let go: what it has in the cache is freed before the next step; `result` raises `CancelledError`."""
        self.cancelled = True
        self.wake()

    def result(self, timeout: float | None = None) -> Completion:
        """The whole text, once it is there; raises what kept it from being made."""
        return self.future.result(timeout)

    def pieces(self) -> Iterator[TextDelta]:
        """The text as it comes; raises at the end what broke it off. To be read once."""
        while (piece := self._pieces.get()) is not None:
            yield piece
        error = self.future.exception()
        if error is not None:
            raise error

    def say(self, piece: TextDelta | None) -> None:
        """For the generator: hand a piece to whoever listens."""
        self._pieces.put(piece)
        try:
            self.listen(piece)
        except Exception as error:  # whoever listens may be at fault; the texts of others go on
            log.exception("a listener to generated text failed", exc_info=error)
