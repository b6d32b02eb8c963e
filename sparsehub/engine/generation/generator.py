"""The generator: texts of many tasks from one language model, a token of each running text per step."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Hashable, Sequence
from typing import Any

from sparsehub.engine.fair_share import Flow
from sparsehub.engine.generation.admission_queue import AdmissionQueue
from sparsehub.engine.generation.cache_limits import GenerationUsage
from sparsehub.engine.generation.context import GenerationContext
from sparsehub.engine.generation.model_runner import ModelRunner
from sparsehub.engine.generation.output_processor import OutputProcessor
from sparsehub.engine.generation.request import Generation, PreparedGeneration, Sampling, TextListener
from sparsehub.engine.generation.token_bytes import TokenBytes
from sparsehub.engine.pending_request import AcquiredTask
from sparsehub.engine.task_handle import TaskHandle
from sparsehub.errors import (
    CancelledError,
    NotFiniteError,
    RequestError,
    SparsehubError,
    StoppingError,
    UnhealthyError,
)
from sparsehub.kernels.openmp import release_threads

log = logging.getLogger("sparsehub")
IDLE_SECONDS = 0.5  # how often an idle generator looks whether it should end


class Generator:
    """Generates the texts of an `Engine`. Any thread may submit and cancel; one thread runs `step` (see `start`).

    tokenizer: used by no one else; max_tokens: of one sequence of the model, prompt and text together.
    """

    def __init__(self, context: GenerationContext, runner: ModelRunner, tokenizer: Any, max_tokens: int):
        self.limits = context.limits
        self.max_tokens = min(max_tokens, self.limits.pages * self.limits.page_tokens)
        self.tokenizer, self.tokenizer_lock = tokenizer, threading.Lock()
        self.residency, self._bytes = context.residency, TokenBytes(tokenizer)
        self._planner, self._runner, self._batcher = context.planner, runner, runner.batcher
        self._waiting = AdmissionQueue(self.limits, context.lanes)
        self._outputs: dict[str, OutputProcessor] = {}  # of the running texts, by their ids
        self._lane: Hashable | None = None  # of what is running
        self._numbers = itertools.count()
        self._pages = self._steps = self._tokens = self._running = 0
        self._thread: threading.Thread | None = None
        self._stopping = self._out_of_time = False

    # requests

    def prepare(
        self,
        acquired: AcquiredTask | None,
        prompts: list[list[int]],
        samplings: Sequence[Sampling],
        timeout: float | None,
    ) -> PreparedGeneration:
        """Check prompts that are token ids. acquired: the task that answers, None for the plain backbone.

        Raises `RequestError` for a prompt that the model or the cache could not take, and `UnhealthyError`.
        """
        if not self.takes_work:
            raise UnhealthyError("the engine generates no more", fix="restart it")
        lengths = [self._length(prompt, sampling) for prompt, sampling in zip(prompts, samplings, strict=True)]
        return PreparedGeneration(acquired and acquired.share(), timeout, prompts, lengths, samplings)

    def submit(self, prepared: PreparedGeneration, listener: TextListener | None = None) -> list[Generation]:
        """Queue texts, all or none, each with its own reference to the task; raises `QueueFullError`.

        listener: gets every part of every text as it comes.
        """
        handle, generations = prepared.handle, self._generations(prepared, listener)
        if handle is not None:
            self.residency.hold(handle, len(generations))
        try:
            self._waiting.submit(generations)
        except SparsehubError:
            for generation in generations:
                self._release(generation)
            raise
        if handle is not None and handle.error is not None:  # its load failed before they were in the queue
            self.task_loaded(handle)
        return generations

    def _generations(self, prepared: PreparedGeneration, listener: TextListener | None) -> list[Generation]:
        """A prepared request's texts, in the order of its prompts."""
        flow = Flow(prepared.tenant, None if prepared.handle is None else prepared.handle.task.digest)
        deadline = None if prepared.timeout is None else time.monotonic() + prepared.timeout
        asked = zip(prepared.prompts, prepared.lengths, prepared.samplings, strict=True)
        return [
            Generation(
                f"g{next(self._numbers)}",
                tuple(prompt),
                length,
                sampling,
                prepared.task,
                prepared.handle,
                deadline,
                number,
                listener,
                changed=self._waiting.changed,
                flow=flow,
            )
            for number, (prompt, length, sampling) in enumerate(asked)
        ]

    def _length(self, prompt: Sequence[int], sampling: Sampling) -> int:
        """How many tokens a text may get; raises `RequestError` for what would break transformers' batching later."""
        if not prompt:
            raise RequestError("the prompt has no tokens", expected="some text")
        if min(prompt) < 0 or max(prompt) >= len(self.tokenizer):
            raise RequestError(
                "the prompt holds a token that the model does not have",
                found=f"{min(prompt)} to {max(prompt)}",
                expected=f"0 to {len(self.tokenizer) - 1}",
            )
        room, wanted = self.max_tokens - len(prompt), sampling.max_tokens
        if wanted is not None and wanted > self.limits.new_tokens:
            raise RequestError("max_tokens is too large", found=wanted, expected=f"at most {self.limits.new_tokens}")
        if room < (wanted or 1):
            raise RequestError(
                "the prompt and max_tokens are longer than the model's context",
                found=f"{len(prompt)} and {wanted or 1} tokens",
                expected=f"at most {self.max_tokens} together",
                fix="shorten the prompt, or ask for fewer tokens",
            )
        return wanted or min(room, self.limits.new_tokens)

    def task_loaded(self, handle: TaskHandle) -> None:
        """Let the texts of a task run, or end them with the error of its load; `Residency` calls it."""
        if handle.error is not None:
            for generation in self._waiting.take_of(handle):
                self._end(generation, handle.error)
        self._waiting.wake()

    @property
    def takes_work(self) -> bool:
        """Whether `stop` was not called and a started thread still runs."""
        return not self._stopping and (self._thread is None or self._thread.is_alive())

    def usage(self) -> GenerationUsage:
        """Counts for metrics, as they were after the last step."""
        return GenerationUsage(
            self._running, len(self._waiting), self._pages, self.limits.pages, self._steps, self._tokens
        )

    # the loop

    def start(self) -> None:
        """Run `step` in a thread of its own until `stop`."""
        self._thread = threading.Thread(target=self._run_until_stopped, name="sparsehub-generate", daemon=True)
        self._thread.start()

    def stop(self, drain: float) -> None:
        """Take no more requests, and go on for up to `drain` seconds; texts that still run then end with an error."""
        self._waiting.close()
        self._stopping = True
        if self._thread is not None:
            self._thread.join(drain)
            self._out_of_time = True
            self._waiting.wake()
            self._thread.join()
        self._fail_all(StoppingError("the engine stopped before the text was whole"))

    def _run_until_stopped(self) -> None:
        try:
            while not (self._out_of_time or (self._stopping and not self._batcher.running and not len(self._waiting))):
                self.step(IDLE_SECONDS)
        except BaseException as error:  # no one would step for those that wait, nor for those that come
            self._waiting.close()
            self._stopping = True
            self._fail_all(UnhealthyError("the generator's thread ended", found=repr(error)[:300], fix="restart it"))
            raise

    def step(self, timeout: float | None = 0.0) -> bool:
        """Drop cancelled texts, admit waiting ones, and run one step: a token of every text that is past its prompt.
        False where nothing could run within `timeout` seconds."""
        self._runner.check_weights()
        self._drop_cancelled()
        chosen, self._lane = self._waiting.admit(self._batcher.running, self._lane)
        for generation in chosen:
            self._batcher.add(generation)
            self._outputs[generation.id] = OutputProcessor(generation, self.tokenizer, self._bytes, self._batcher.ends)
        if not self._batcher.running:
            self._note_usage()
            self._runner.rest()
            release_threads()
            self._waiting.wait(timeout)
            return False
        self._run_step()
        self._note_usage()
        return True

    def _run_step(self) -> None:
        began = time.monotonic()
        try:
            tokens = self._runner.step(self._planner.mode)
        except Exception as error:  # prompts were checked: this is no request's fault, and the cache may hold anything
            log.exception("a step of text generation failed", exc_info=error)
            self._fail_all(_failed(error), waiting=isinstance(error, UnhealthyError))
            return
        self._steps += 1
        self._waiting.pace.note_step(len(tokens), time.monotonic() - began)
        for generation, token, chosen in tokens:
            if token is None:
                self._batcher.drop(generation)
                self._end(generation, NotFiniteError())
                continue
            self._tokens += 1
            output = self._outputs[generation.id]
            output.push(token, chosen)
            if output.finish is not None:
                self._batcher.drop(generation)  # where a stop text ended it, transformers would go on
                self._end(generation)

    def _drop_cancelled(self) -> None:
        """Take cancelled texts out of the queue and the cache, and those that waited too long out of the queue."""
        for generation, error in self._waiting.dead(time.monotonic()):
            self._end(generation, error)
        for generation in self._batcher.running:
            if generation.cancelled:
                self._batcher.drop(generation)
                self._end(generation, CancelledError("the request was cancelled"))

    def _fail_all(self, error: SparsehubError, *, waiting: bool = True) -> None:
        for generation in self._batcher.running:
            self._batcher.drop(generation)
            self._end(generation, error)
        for generation in self._waiting.take_all() if waiting else ():
            self._end(generation, error)

    def _end(self, generation: Generation, error: SparsehubError | None = None) -> None:
        """Give the text its result or its error, once, and give back its reference to the task."""
        output = self._outputs.pop(generation.id, None)
        if error is not None:
            generation.future.set_exception(error)
        else:
            assert output is not None  # only what has run ends well
            generation.future.set_result(output.completion())
            self._waiting.pace.note_text(len(generation.tokens), generation.max_tokens)
        generation.emit(None)
        self._release(generation)

    def _release(self, generation: Generation) -> None:
        if generation.handle is not None:
            self.residency.release(generation.handle)

    def _note_usage(self) -> None:
        self._running, self._pages = len(self._batcher.running), self._batcher.pages


def _failed(error: Exception) -> SparsehubError:
    if isinstance(error, SparsehubError):
        return error
    return UnhealthyError("a step of the model failed", found=f"{type(error).__name__}: {error}"[:300])
