"""The engine: one backbone, many tasks, one thread that runs batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

from sparsehub.backbone import Backbone
from sparsehub.backbone.tokenizer import load_tokenizer, max_tokens
from sparsehub.engine.arena_manager import ArenaManager
from sparsehub.engine.batch_planner import AUTO, MODES, BatchPlanner
from sparsehub.engine.batch_runner import BatchRunner
from sparsehub.engine.composition import find_task
from sparsehub.engine.cost_model import CostModel
from sparsehub.engine.generation.context import GenerationContext
from sparsehub.engine.generation.entrypoint import Prompt, ask, make_generator
from sparsehub.engine.generation.generator import Listen
from sparsehub.engine.generation.limits import GenerationLimits
from sparsehub.engine.generation.request import Generation, Sampling
from sparsehub.engine.health import EngineHealth
from sparsehub.engine.input_processor import InputProcessor
from sparsehub.engine.lane_policy import LanePolicy
from sparsehub.engine.mixing_check import checked_targets
from sparsehub.engine.model_loop import ModelLoop
from sparsehub.engine.pending_request import Admit, PendingRequest
from sparsehub.engine.pooling import pooling_of
from sparsehub.engine.residency import Residency
from sparsehub.engine.scheduler import Limits, Scheduler
from sparsehub.engine.stats import BatchObserver, TaskStatus
from sparsehub.engine.task_handle import LOAD_SECONDS, Budgets, Usage
from sparsehub.engine.task_loader import TaskLoader
from sparsehub.engine.task_registry import Task, TaskInfo, TaskRegistry
from sparsehub.errors import RequestError, UsageError
from sparsehub.package import Package
from sparsehub.package.outputs import Prediction
from sparsehub.task_ref import ModelRef, TaskRef, model_of

Reference = str | TaskRef | ModelRef


class Engine:
    """Serves many tasks from one backbone. Any thread may submit; one thread runs the batches, from `start` to `stop`:

        with Engine(load_backbone("sentence-transformers/all-MiniLM-L6-v2")) as engine:
            engine.add(read_package("packages/trec"))
            print(engine.classify("trec", ["Who wrote Hamlet?"]).futures[0].result().label)

    limits: of the queue and of a batch; observer: told of every batch; budgets: memory for tasks; mode: how batches
    run, `auto`, or `swap` or `mixed` wherever that is possible; check_seconds: between two checks of a block of the
    base weights, 0 for none; generation: what text generation may use.
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
        generation: GenerationLimits | None = None,
    ):
        self.backbone = backbone
        self.tokenizer = load_tokenizer(backbone.checkpoint)
        self.tasks = TaskRegistry()
        self.arena = ArenaManager(backbone, check_seconds)
        self._targets = targets = checked_targets(backbone)
        self._loader = TaskLoader(backbone, targets, self.arena, self.tokenizer.pad_token_id)
        self._residency = Residency(budgets or Budgets(), self._loader, self.arena)
        self._planner = BatchPlanner(self.arena, backbone, targets, self.max_tokens)
        self.mode = mode
        lanes = LanePolicy(self._residency, self._planner, mixes=bool(targets.uses))
        self._scheduler = Scheduler(limits or Limits(), lanes, self._planner)
        pooling = pooling_of(backbone.checkpoint.folder)
        runner = BatchRunner(backbone, targets, self.arena.swap, self.tokenizer, pooling)
        self._loop = ModelLoop(self.arena, self._scheduler, self._planner, runner, observer)
        self._residency.add_listener(self._loop)
        limits_of_texts = generation or GenerationLimits()
        self.generator = make_generator(
            GenerationContext(backbone, targets, self.arena, self._residency, lanes, self._planner, limits_of_texts)
        )  # None where the backbone is no causal language model
        if self.generator is not None:
            self._residency.add_listener(self.generator)
        self._health = EngineHealth(self.arena, self._loop, self.generator)
        self._desk = InputProcessor(self._scheduler, self._residency, self._health, self.tokenizer, self.max_tokens)

    # tasks

    def add(self, package: Package) -> TaskInfo:
        """Serve a package that is in memory; it stays there, ready to run.

        Raises `BackboneMismatchError` or `FormatError`, and changes nothing then.
        """
        manifest = package.manifest
        task = Task(manifest.name, manifest.version, package.digest, lambda: package)
        resident = self._residency.admit(task, self._loader.lay_out(package))
        try:
            self.tasks.add(task)
        except UsageError:
            self._residency.forget(task.digest)
            raise
        return resident.info

    def register(self, task: Task, *, replace: bool = False, beside: bool = False) -> None:
        """Serve a task that is read when it is wanted. `replace`: also where its version means other contents today;
        rows that are queued still get the answers of what was served when they came. `beside`: the other contents are
        served on, by their digest."""
        for replaced in self.tasks.add(task, replace=replace, beside=beside):
            self._residency.forget(replaced.digest)

    def remove(self, reference: str | TaskRef) -> None:
        """Serve a task no longer; rows that are queued are still answered. Raises `UnknownTaskError`."""
        self._residency.forget(self.tasks.remove(reference).digest)

    def load(self, reference: Reference, *, pin: bool = False, timeout: float = LOAD_SECONDS) -> TaskInfo:
        """Have a task ready to run, and keep it so where `pin` says so; raises what its load raises."""
        task = self._find(reference)
        handle = self._residency.pin(task) if pin else self._residency.acquire(task)
        try:
            return handle.wait(timeout).info
        finally:
            if not pin:
                self._residency.release(handle)

    def unpin(self, reference: str | TaskRef) -> None:
        """Let a task make room for others again. Raises `UnknownTaskError`."""
        self._residency.unpin(self.tasks.find(reference).digest)

    def status(self) -> list[TaskStatus]:
        """Where every task is."""
        return [self._residency.status(task) for task in self.tasks.all()]

    @property
    def usage(self) -> Usage:
        """Bytes and counts of the tasks in memory."""
        return self._residency.usage()

    # requests

    def classify(
        self,
        reference: Reference,
        inputs: Sequence[Any],
        *,
        truncate: bool = False,
        timeout: float | None = None,
        admit: Admit = lambda _: None,
    ) -> PendingRequest[Prediction]:
        """One future per input, for a task of any kind; raises `RequestError`, `UnknownTaskError`, `QueueFullError`.

        admit: called with the tokens of all inputs before any of them waits; what it raises is raised.
        """
        return self._desk.ask(self._find(reference), inputs, truncate, timeout, admit, embed=False)

    def embed(
        self,
        reference: Reference | None,
        texts: Sequence[Any],
        *,
        truncate: bool = False,
        timeout: float | None = None,
        admit: Admit = lambda _: None,
    ) -> PendingRequest[list[float]]:
        """One future per text: a unit vector, from the task's weights or (None) from the plain backbone."""
        if reference is not None:
            return self._desk.ask(self._find(reference), texts, truncate, timeout, admit, embed=True)
        return self._desk.embed(texts, truncate, timeout, admit)

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
        listen: Callable[[int], Listen] = lambda _: lambda _: None,
        admit: Admit = lambda _: None,
    ) -> list[Generation]:
        """One text per prompt, all queued or none; see `Generator.submit`. admit: as for `classify`, called with the
        tokens of the prompts and the most that the texts may come to."""
        if self.generator is None:
            raise RequestError("the backbone generates no text", found=self.backbone.architecture)
        task = None if reference is None else self._find(reference)
        return ask(self.generator, task, prompts, samplings, timeout, listen, admit)

    def info(self, reference: Reference, timeout: float | None = None) -> TaskInfo:
        """What a task is; reads its package where nobody has yet. Raises `UnknownTaskError`."""
        task = self._find(reference)
        return self._residency.info(task.digest) or self.load(reference, timeout=timeout or LOAD_SECONDS)

    @property
    def max_tokens(self) -> int:
        """Tokens that the plain backbone takes in one sequence."""
        return max_tokens(self.tokenizer, self.backbone.config)

    @property
    def waiting(self) -> int:
        return self._scheduler.waiting

    @property
    def healthy(self) -> bool:
        """Whether work is taken: the base weights are known, `stop` was not called, and started threads still run."""
        return self._health.ok

    def _find(self, reference: Reference) -> Task:
        """A task that is served, or one that the reference composes of such (`trec+tone*0.5`)."""
        return find_task(self.tasks, model_of(reference))

    # running

    def __enter__(self) -> Self:
        """Start; the end of the block stops it."""
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Measure what batches cost here, then run `step` in a thread of its own until `stop`; generate in another."""
        self._loop.start()
        if self.generator is not None:
            self.generator.start()

    def stop(self, drain: float = 30.0) -> None:
        """Take no more rows, finish what waits for up to `drain` seconds, and leave the base weights in the arena."""
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
        """How batches run: `auto`, `swap` or `mixed`; may be changed at any time."""
        return self._planner.mode

    @mode.setter
    def mode(self, mode: str) -> None:
        if mode not in MODES:
            raise UsageError("unknown way of running batches", found=mode, expected=", ".join(MODES))
        self._planner.mode = mode

    @property
    def costs(self) -> CostModel:
        """What batches cost on this machine: predictions by mode, and what was learned since."""
        return self._planner.costs
