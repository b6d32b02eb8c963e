"""The engine: many tasks on one backbone; what a notebook, a Bento and a Ray replica work with."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Self

from sparsehub.backbone import Backbone
from sparsehub.backbone.tokenizer import load_tokenizer, max_tokens
from sparsehub.engine.arena_manager import ArenaManager
from sparsehub.engine.base_weights import FLOAT, prepared_targets
from sparsehub.engine.batch_planner import AUTO, BatchPlanner, check_mode
from sparsehub.engine.batch_runner import BatchRunner
from sparsehub.engine.compiled.background import OFF, BackgroundCompiler
from sparsehub.engine.cost_model import CostModel
from sparsehub.engine.generation.cache_limits import GenerationLimits
from sparsehub.engine.generation.context import GenerationContext
from sparsehub.engine.generation.entrypoint import Prompt, make_generator, prepare_generation
from sparsehub.engine.generation.generator import Generator
from sparsehub.engine.generation.request import Generation, PreparedGeneration, Sampling, TextListener
from sparsehub.engine.health import EngineHealth
from sparsehub.engine.input_processor import InputProcessor, KnownRows
from sparsehub.engine.lane_policy import LanePolicy
from sparsehub.engine.many_tasks import ask_many
from sparsehub.engine.model_loop import ModelLoop
from sparsehub.engine.pending_request import AcquiredTask, PendingRequest, PreparedRequest
from sparsehub.engine.residency import Residency
from sparsehub.engine.scheduler import Limits, Scheduler
from sparsehub.engine.served_tasks import ServedTasks
from sparsehub.engine.state_cache import StateCache
from sparsehub.engine.stats import BatchObserver
from sparsehub.engine.task_handle import Budgets
from sparsehub.engine.task_loader import TaskLoader
from sparsehub.engine.task_registry import TaskRegistry, find_task
from sparsehub.engine.trunk_check import with_resuming
from sparsehub.errors import RequestError, SparsehubError
from sparsehub.kernels.openmp import release_threads
from sparsehub.memory import keep_freed_memory
from sparsehub.package.outputs import Prediction
from sparsehub.task_ref import Reference


class Engine(ServedTasks):
    """Serves many tasks from one backbone. Any thread may submit; one thread runs the batches, from `start` to `stop`:

        with Engine(load_backbone("sentence-transformers/all-MiniLM-L6-v2")) as engine:
            engine.add(read_package("packages/trec"))
            print(engine.classify("trec", ["Who wrote Hamlet?"]).futures[0].result().label)

    limits: of queue and batch; observer: told of every batch; budgets: memory for tasks; mode: how batches run, `auto`,
    `swap`, `mixed` or `trunk` where possible; check_seconds: between two looks at the weights, 0 for none;
    compile_mode: whether `start` has passes compiled (`compiler.join` waits for them), and decode steps of text become
    CUDA graphs on a GPU: `auto`, `on` or `off`; weights: `float`, or `int8`, `fp8` or `nf4`, on which tasks that were
    trained on float ones run where `allow_quantised` says so; on a GPU the backbone's arena moves to host memory then.
    """

    def __init__(
        self,
        backbone: Backbone,
        limits: Limits | None = None,
        observer: BatchObserver | None = None,
        *,
        budgets: Budgets | None = None,
        mode: str = AUTO,
        check_seconds: float = 1.0,
        compile_mode: str = OFF,
        weights: str = FLOAT,
        allow_quantised: bool = False,
        generation: GenerationLimits | None = None,
    ):
        if backbone.device.type == "cpu":
            keep_freed_memory()
        self.backbone = backbone
        self.tokenizer = load_tokenizer(backbone.checkpoint)
        self.tasks = TaskRegistry()
        targets = prepared_targets(backbone, weights, allow_quantised)
        self.arena = ArenaManager(backbone, check_seconds)
        budgets = budgets or Budgets()
        self._targets = targets = with_resuming(backbone, targets) if budgets.state_bytes else targets
        self.states = StateCache(backbone, budgets.state_bytes, left=self.tokenizer.padding_side == "left")
        self._loader = TaskLoader(backbone, targets, self.arena, self.tokenizer.pad_token_id)
        self._residency = Residency(budgets, self._loader, self.arena)
        self.arena.watch(targets, self._residency, self.states)
        self._planner = BatchPlanner(self.arena, backbone, targets, self.max_tokens, self.states)
        self.mode = mode
        lanes = LanePolicy(self._residency, self._planner, bool(targets.uses), targets.layers)
        self._scheduler = Scheduler(limits or Limits(), lanes, self._planner)
        self.compiler = BackgroundCompiler(backbone, targets, self.arena, self._planner, self.tokenizer, compile_mode)
        passes = self.compiler.plain, self.compiler.mixed, self.compiler.layers
        runner = BatchRunner(backbone, *passes, targets, self.arena.swap, self.tokenizer, self.states)
        self._loop = ModelLoop(self.arena, self._scheduler, self._planner, runner, observer)
        self._residency.add_listener(self._loop)
        texts = generation or GenerationLimits()
        graphs = compile_mode != OFF
        context = GenerationContext(backbone, targets, self.arena, self._residency, lanes, self._planner, texts, graphs)
        self.generator = make_generator(context)  # None where the backbone is no causal language model
        if self.generator is not None:
            self._residency.add_listener(self.generator)
        self._health = EngineHealth(self.arena, self._loop, self.generator)
        self._inputs = InputProcessor(self._scheduler, self._residency, self._health, self.tokenizer, self.max_tokens)

    # requests

    def acquire(self, reference: Reference, timeout: float | None = None) -> AcquiredTask:
        """Reference a task, and begin to load it where it is not in memory. Raises `UnknownTaskError`. timeout: seconds
        that the load may take, None for a minute."""
        return AcquiredTask(self._residency, self._residency.acquire(find_task(self.tasks, reference)), timeout)

    def prepare(
        self,
        reference: Reference | AcquiredTask | None,
        inputs: Sequence[Any],
        *,
        embed: bool = False,
        truncate: bool | int = False,
        timeout: float | None = None,
        known: KnownRows | None = None,
    ) -> PreparedRequest:
        """Reference the task, check and tokenise the inputs; nothing is queued before `submit`.

        reference: None for the plain backbone, which only embeds; an acquired task stays the caller's to release.
        embed: unit vectors are wanted, of texts or token ids; truncate: cut inputs, at the task's limit or at so many
        tokens; timeout: seconds that a load may take, and a row may wait; known: what was tokenised of these inputs for
        other tasks, empty at first. Raises `RequestError`, `UnknownTaskError`, `UnhealthyError`, and what the task's
        load raises.
        """
        if reference is None and not embed:
            raise RequestError("the plain backbone has no head", fix="name a task, or ask for embeddings")
        with self._acquired(reference, timeout) as acquired:  # it is loaded while its rows are tokenised
            return self._inputs.prepare(acquired, inputs, embed=embed, truncate=truncate, timeout=timeout, known=known)

    def submit(self, prepared: PreparedRequest) -> PendingRequest[Any]:
        """Queue all rows of a request or none; raises `QueueFullError`."""
        return self._inputs.submit([prepared])[0]

    def submit_all(self, requests: Sequence[PreparedRequest]) -> list[PendingRequest[Any]]:
        """Queue all rows of several requests or none, so that they can run together; raises `QueueFullError`."""
        return self._inputs.submit(requests)

    def prepare_generation(
        self,
        reference: Reference | None,
        prompts: Sequence[Prompt],
        samplings: Sequence[Sampling],
        timeout: float | None = None,
    ) -> PreparedGeneration:
        """`prepare` for text: one sampling for each prompt. Raises what `prepare` raises.

        timeout: seconds that a task may take to load, and a text to begin; None for a minute and for ever.
        """
        generator = self._generator()
        with self._acquired(reference, timeout) as acquired:  # it is loaded while its prompts are tokenised
            return prepare_generation(generator, acquired, prompts, samplings, timeout)

    def submit_generation(self, prepared: PreparedGeneration, listener: TextListener | None = None) -> list[Generation]:
        """Queue all texts of a request or none; raises `QueueFullError`. listener: gets their parts as they come."""
        return self._generator().submit(prepared, listener)

    def classify(
        self, reference: Reference, inputs: Sequence[Any], *, truncate: bool | int = False, timeout: float | None = None
    ) -> PendingRequest[Prediction]:
        """One future per input, for a task of any kind; raises what `prepare` and `submit` raise."""
        with self.prepare(reference, inputs, truncate=truncate, timeout=timeout) as prepared:
            return self.submit(prepared)

    def classify_many(
        self,
        references: Sequence[Reference],
        inputs: Sequence[Any],
        *,
        truncate: bool | int = False,
        timeout: float | None = None,
    ) -> list[PendingRequest[Prediction] | SparsehubError]:
        """`classify` for several tasks at once: what they share of these inputs runs once. In the order of the
        references, what `classify` would return or raise for each; raises `QueueFullError` where not all fit."""
        return ask_many(self, references, inputs, truncate, timeout)

    def embed(
        self,
        reference: Reference | None,
        texts: Sequence[Any],
        *,
        truncate: bool | int = False,
        timeout: float | None = None,
    ) -> PendingRequest[list[float]]:
        """One future per text or list of token ids: a unit vector, from the task's weights or (None) the backbone's."""
        with self.prepare(reference, texts, embed=True, truncate=truncate, timeout=timeout) as prepared:
            return self.submit(prepared)

    def generate(
        self,
        reference: Reference | None,
        prompt: Prompt,
        sampling: Sampling | None = None,
        timeout: float | None = None,
    ) -> Generation:
        """One text: from a task's weights or (None) from the plain backbone. prompt: a text, token ids, or messages."""
        return self.generate_many(reference, [prompt], [sampling or Sampling()], timeout)[0]

    def generate_many(
        self,
        reference: Reference | None,
        prompts: Sequence[Prompt],
        samplings: Sequence[Sampling],
        timeout: float | None = None,
    ) -> list[Generation]:
        """One text per prompt, all queued or none; raises what `prepare_generation` and `submit_generation` raise."""
        with self.prepare_generation(reference, prompts, samplings, timeout) as prepared:
            return self.submit_generation(prepared)

    def _acquired(
        self, reference: Reference | AcquiredTask | None, timeout: float | None
    ) -> AbstractContextManager[AcquiredTask | None]:
        """Inside, the task is referenced; one that the caller has acquired stays the caller's to release."""
        if reference is None or isinstance(reference, AcquiredTask):
            return nullcontext(reference)
        return self.acquire(reference, timeout)

    def _generator(self) -> Generator:
        if self.generator is None:
            raise RequestError("the backbone generates no text", found=self.backbone.architecture)
        return self.generator

    @property
    def max_tokens(self) -> int:
        """Tokens that the plain backbone takes in one sequence."""
        return max_tokens(self.tokenizer, self.backbone.config)

    @property
    def waiting(self) -> int:
        """Rows in the queue."""
        return self._scheduler.waiting

    @property
    def healthy(self) -> bool:
        """Whether work is taken: the base weights are known, `stop` was not called, and started threads still run."""
        return self._health.ok

    # running

    def __enter__(self) -> Self:
        """Start; the end of the block stops it."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Measure what batches cost here, then run `step` in a thread of its own until `stop`; generate in another."""
        self._loop.start()
        release_threads()
        if self.generator is not None:
            self.generator.start()
        self.compiler.start()

    def stop(self, drain: float = 30.0) -> None:
        """Take no more rows, finish what waits for up to `drain` seconds, and leave the base weights in the arena."""
        self.compiler.stop()
        if self.generator is not None:
            self.generator.stop(drain)
        self._loop.stop(drain)
        self._residency.close()
        self.arena.release_active()

    def step(self, timeout: float | None = 0.0) -> bool:
        """Take the next batch, run it in the cheapest way, answer. False where none came within `timeout` seconds."""
        return self._loop.step(timeout)

    @property
    def mode(self) -> str:
        """How batches run: `auto`, `swap`, `mixed` or `trunk`; may be changed at any time."""
        return self._planner.mode

    @mode.setter
    def mode(self, mode: str) -> None:
        self._planner.mode = check_mode(mode)

    @property
    def costs(self) -> CostModel:
        """What batches cost on this machine: predictions by mode, and what was learned since."""
        return self._planner.costs
