"""CUDA graphs of decode steps: the model's forward of a step in which every text gets one token, captured and replayed.

Such a forward is hundreds of short kernels, and launching them one by one takes longer than running them. A replay
repeats the same launches on the same addresses, so what changes from step to step has to lie in memory that stays:
transformers' own inputs do, and so do the arena, whichever task is in it, and the tables of `StaticMemory`. All else
that a launch depends on is in the graph's key.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from sparsehub import kernels
from sparsehub.backbone import Backbone

EAGER_STEPS = 2  # of a key before it is captured: kernels are compiled in them, and what comes twice may come often
MOST_GRAPHS = 64  # the one that was not used for longest is dropped
MOST_BYTES = 1 << 30  # of device memory for what graphs compute in; they share it, so more is seldom needed
log = logging.getLogger("sparsehub")


def can_capture(backbone: Backbone) -> bool:
    """Whether a backbone's decode steps may become graphs; `make_generator` asks."""
    return backbone.device.type == "cuda" and kernels.reads_tables(next(iter(backbone.arena.buffers.values())))


@dataclass
class _Known:
    """What is known of one key."""

    steps: int = 0  # eager ones
    rows: int = 0  # of the logits
    graph: Any = None  # a `torch.cuda.CUDAGraph`, once it was captured


class DecodeGraphs:
    """Stands for the language model in a `Batcher`'s steps: a step that may be a graph is one from its third time on,
    every other is the model's own forward. Not thread-safe.

    rows: texts of a step, at most. It is off until `on` is set; after a capture that failed it is off for good.
    """

    def __init__(self, model: Any, device: torch.device, rows: int):
        self.on = False
        # What the next step has baked in beside its inputs (`PackedBatch.baked`); None where it may be no graph.
        self.baked: Hashable | None = None
        self.replays = 0  # steps that were replayed
        self._model, self._device, self._rows = model, device, rows
        self._known: OrderedDict[Hashable, _Known] = OrderedDict()
        self._pool: Any = None
        self._nbytes = 0  # of the pool
        self._logits: Tensor | None = None  # [1, rows, vocabulary]: what every graph writes

    def __len__(self) -> int:
        """Graphs that there are."""
        return sum(known.graph is not None for known in self._known.values())

    def _supports_logits_to_keep(self) -> bool:
        """Asked by transformers: whether the model can compute the logits of some tokens alone."""
        return hasattr(self._model, "_supports_logits_to_keep") and bool(self._model._supports_logits_to_keep())

    def __call__(self, **inputs: Any) -> Any:
        """The model's output for a step, of which transformers reads `logits`; on transformers' stream."""
        if not self.on:
            return self._model(**inputs)
        try:
            return self._output(inputs)
        except torch.OutOfMemoryError:
            if not len(self):
                raise
        self.turn_off("the device has no memory left")
        return self._model(**inputs)  # again: it writes the same keys and values to the same places

    def turn_off(self, reason: str) -> None:
        """Drop all graphs, and run every step eagerly from here on."""
        log.warning("steps of text generation use no CUDA graphs from here on: %s", reason)
        self.on = False
        for known in self._known.values():
            _drop(known)
        self._known.clear()
        self._logits = None

    def _output(self, inputs: Mapping[str, Any]) -> Any:
        if self.baked is None:
            return self._model(**inputs)
        known = self._of((self.baked, _addresses(inputs)))
        if known.graph is None and not self._capture(known, inputs):
            output = self._model(**inputs)
            known.steps, known.rows = known.steps + 1, output.logits.shape[1]
            if self.on and self._logits is None:
                self._logits = output.logits.new_empty((1, self._rows, output.logits.shape[2]))
            return output
        assert self._logits is not None  # the eager steps before have made it
        known.graph.replay()
        self.replays += 1
        return SimpleNamespace(logits=self._logits[:, : known.rows])

    def _of(self, key: Hashable) -> _Known:
        known = self._known.setdefault(key, _Known())
        self._known.move_to_end(key)
        if len(self._known) > MOST_GRAPHS:
            _drop(self._known.popitem(last=False)[1])
        return known

    def _capture(self, known: _Known, inputs: Mapping[str, Any]) -> bool:
        """Capture the step where it is time; whether there is a graph then."""
        if known.steps < EAGER_STEPS or self._nbytes > MOST_BYTES:
            return False
        logits = self._logits
        assert logits is not None

        try:
            self._pool = self._pool or torch.cuda.graph_pool_handle()
            with capture(self._device, self._pool) as made:
                logits[:, : known.rows].copy_(self._model(**inputs).logits)
            known.graph = made.graph
            self._nbytes += made.nbytes
            return True
        except Exception as error:  # nothing was computed: the step runs eagerly
            problem = f"one could not be captured: {type(error).__name__}: {error}"[:300]
        self.turn_off(problem)
        return False


@dataclass
class Capture:
    """A graph that is made, and by how many bytes its pool of memory grew."""

    graph: Any
    nbytes: int = 0


@contextmanager
def capture(device: torch.device, pool: Any) -> Iterator[Capture]:
    """Inside, what this thread launches on the current stream becomes a graph. Other threads, which load tasks, may use
    the device meanwhile."""
    made, stream = Capture(torch.cuda.CUDAGraph()), torch.cuda.current_stream(device)
    with torch.cuda.graph(made.graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
        before = torch.cuda.memory_reserved(device)
        yield made
        made.nbytes = max(0, torch.cuda.memory_reserved(device) - before)


def _drop(known: _Known) -> None:
    if known.graph is not None:
        known.graph.reset()
        known.graph = None


def _addresses(value: Any) -> Hashable:
    """What launches with these arguments have baked in: where tensors are, how they are laid out, and every number."""
    if isinstance(value, Tensor):
        return value.data_ptr(), value.shape, value.stride(), value.dtype
    if isinstance(value, Mapping):
        return tuple((name, _addresses(its)) for name, its in value.items())
    if isinstance(value, list | tuple):
        return tuple(_addresses(its) for its in value)
    return value if isinstance(value, int | float | str | None) else id(value)
