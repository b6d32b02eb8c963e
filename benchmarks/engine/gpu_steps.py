"""Decode steps of text generation in the engine on a GPU: eager, and from captured graphs. `benchmarks.engine.gpu` runs
it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from sparsehub.backbone import Backbone
from sparsehub.engine.adapter_weights import AdapterWeights, make_adapter_weights
from sparsehub.engine.arena_manager import ArenaManager
from sparsehub.engine.cost_model import MIXED
from sparsehub.engine.generation.batcher import NO_END, Batcher
from sparsehub.engine.generation.cache_limits import GenerationLimits
from sparsehub.engine.generation.decode_graphs import EAGER_STEPS, can_capture
from sparsehub.engine.generation.model_runner import ModelRunner
from sparsehub.engine.generation.packing import Packer
from sparsehub.engine.generation.request import Generation, Sampling
from sparsehub.engine.resident import Resident, device_digests
from sparsehub.engine.target_modules import TargetModules
from sparsehub.engine.task_handle import TaskHandle
from sparsehub.engine.task_registry import Task, TaskInfo
from sparsehub.package.task_spec import TEXT_GENERATION, TaskSpec
from sparsehub.patch import Patch

PROMPT_STEPS = 256  # tokens of a step: prompts take several
Timed = Callable[[dict[str, Callable[[], Any]]], dict[str, float]]


class Uncounted:
    """Stands for `Residency`: nothing is evicted here."""

    def hold(self, handle: TaskHandle, count: int = 1) -> None:
        """Do nothing."""

    def release(self, handle: TaskHandle) -> None:
        """Do nothing."""


def stepping(
    backbone: Backbone, targets: TargetModules, patches: Sequence[Patch], context: int, most_steps: int, timed: Timed
) -> dict[str, float]:
    """Milliseconds of a step in which each of as many texts as there are patches gets a token, by case: all of them of
    the plain backbone, or each of its own task. The context grows by a token a step; sampling is a part of the step."""
    tasks = [task_of(backbone, targets, number, patch) for number, patch in enumerate(patches)]
    pages = -(-(context + 2 * most_steps) // 16)
    limits = GenerationLimits(16 * pages * len(tasks), 16, max(PROMPT_STEPS, len(tasks)), len(tasks))
    batcher = Batcher(backbone, limits, [NO_END])
    runner = ModelRunner(ArenaManager(backbone, 0), batcher, Packer(targets, limits.rows), only_mixed=False)
    graphs = batcher.use_graphs() if can_capture(backbone) else None
    found: dict[str, float] = {}
    for name, handles in (("plain", [None] * len(tasks)), ("mixed", tasks)):
        texts = started(runner, backbone, handles, context, 2 * most_steps)
        cases: dict[str, Callable[[], Any]] = {f"engine, {name}": lambda: step(runner, captured=False)}
        if graphs is not None:
            cases[f"engine, {name}, graph"] = lambda: step(runner, captured=True)
            for _ in range(EAGER_STEPS + 1):
                step(runner, captured=True)
        found |= timed(cases)
        for text in texts:
            batcher.drop(text)
        runner.rest()
    return found


def step(runner: ModelRunner, *, captured: bool) -> None:
    """A step, from a graph or not."""
    if runner.batcher.graphs is not None:
        runner.batcher.graphs.on = captured
    runner.step(MIXED)


def started(
    runner: ModelRunner, backbone: Backbone, handles: Sequence[TaskHandle | None], context: int, most: int
) -> list[Generation]:
    """Texts that are past their prompts."""
    generator = torch.Generator().manual_seed(0)
    texts = []
    for number, handle in enumerate(handles):
        prompt = torch.randint(backbone.config.vocab_size, (context,), generator=generator)
        info = handle.resident.info if handle is not None and handle.resident is not None else None
        texts.append(Generation(f"t{number}", tuple(prompt.tolist()), most, Sampling(), info, handle))
        runner.batcher.add(texts[-1])
    begun: set[str] = set()
    while len(begun) < len(texts):
        begun |= {text.id for text, _, _ in runner.step(MIXED)}
    return texts


def task_of(backbone: Backbone, targets: TargetModules, number: int, patch: Patch) -> TaskHandle:
    """A task in memory that is on no hub."""
    adapter = make_adapter_weights(targets, backbone.arena, patch)
    assert isinstance(adapter, AdapterWeights)
    info = TaskInfo(f"t{number}", "", f"t{number}", TaskSpec(TEXT_GENERATION, (), "", (), "", 1, ()), patch.nnz)
    resident = Resident(info, patch, adapter, None, None, device_digests(patch, adapter, None))
    return TaskHandle(Task(info.name, "", info.digest, no_package), Uncounted(), resident=resident)


def no_package() -> Any:
    """Stands for the reading of a package: they are in memory already."""
    raise AssertionError
