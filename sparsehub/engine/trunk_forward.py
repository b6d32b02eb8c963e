"""Trunk and branches: one pass in which rows of one text run once up to the first layer that a task of theirs changes.

There the layer's input is handed to a row for each task, which from then on runs as in a mixed batch. For the time of
the pass the layers from the first branch point on have a forward of their own; before and after it nothing is on the
model.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from sparsehub.engine.adapter_weights import AdapterWeights
from sparsehub.engine.layer_stack import LayerStack, Path
from sparsehub.engine.mixed_forward import MixedBatch
from sparsehub.engine.one_token import OneToken
from sparsehub.engine.target_modules import TargetModules
from sparsehub.engine.trunk_plan import Stage, TrunkPlan
from sparsehub.errors import EngineError


class TrunkPass:
    """One pass of a trunk plan; `BatchRunner` makes one per batch. Its batch has the rows of the plan's first stage,
    its outputs those of the last.

    adapters: of the plan's slots from 1 on, in order; reads: which token of each of the last stage's rows is read,
    where it is one.
    """

    def __init__(
        self,
        targets: TargetModules,
        plan: TrunkPlan[Any],
        adapters: Sequence[AdapterWeights],
        reads: OneToken | None = None,
    ):
        assert targets.layers is not None  # or no plan would have been made
        self._layers: LayerStack = targets.layers
        self._stages = {stage.first: stage for stage in plan.stages[1:]}
        self._device, self._rows, self._first_row = targets.device, len(plan.stages[0].rows), plan.first_row
        readers = {index for first in self._stages for index in self._layers.readers[first]}
        bounds = plan.stages[0].bounds
        self._mixed = MixedBatch(targets, [None, *adapters], bounds, readers=readers) if adapters else None
        self._reads = reads
        self._of_text: Tensor | None = None  # by row of the stage, the first row of the batch with its text
        self._handed: dict[int, tuple[Tensor, Tensor]] = {}  # by id: what layers are called with, and its rows now

    @contextmanager
    def on_model(self) -> Iterator[None]:
        """Inside, the backbone's module runs this pass."""
        branching = range(min(self._stages), len(self._layers.modules)) if self._stages else range(0)
        with ExitStack() as stack:
            if self._mixed is not None:
                stack.enter_context(self._mixed.on_model())
            if self._reads is not None and not branching:
                stack.enter_context(self._reads.on_model())
            for index in branching:
                module = self._layers.modules[index]
                stack.callback(module.__dict__.pop, "forward", None)
                # Past nn.Module's own attribute setting, which would look for parameters and hooks first.
                module.__dict__["forward"] = functools.partial(self._layer, index)
            yield

    def _layer(self, index: int, *args: Any, **kwargs: Any) -> Any:
        """A layer's forward: at a branch point with more rows than it was called with."""
        sources = None
        if index in self._stages:
            sources = self._begin(self._stages[index])
        args, kwargs = self._with_rows(args, (), sources), self._with_rows(kwargs, (), sources)
        try:
            return self._run(index, args, kwargs)
        finally:
            if self._mixed is not None:
                self._mixed.end_sharing()

    def _run(self, index: int, args: Any, kwargs: Any) -> Any:
        if self._reads is not None and index == len(self._layers.modules) - 1:
            return self._reads.run(*args, **kwargs)
        module = self._layers.modules[index]
        return type(module).forward(module, *args, **kwargs)

    def _begin(self, stage: Stage) -> Tensor:
        """Go over to a stage; returns the rows that its rows go on from."""
        self._of_text = self._indices([self._first_row[text] for text in stage.texts])
        self._handed.clear()
        if self._mixed is not None:
            self._mixed.regroup(stage.bounds)
        return self._indices(stage.sources)

    def _grown(self, hidden: Tensor, sources: Tensor) -> Tensor:
        grown = hidden.index_select(0, sources)
        if self._mixed is not None and len(sources) > len(hidden):
            self._mixed.share(grown, hidden, sources)
        return grown

    def _indices(self, rows: Sequence[int]) -> Tensor:
        return torch.tensor(rows, device=self._device)

    def _with_rows(self, value: Any, path: Path, sources: Tensor | None) -> Any:
        """What a layer is called with, for the rows of the stage."""
        if isinstance(value, Tensor):
            return self._rows_of(value, path, sources)
        if isinstance(value, tuple | list) and not hasattr(value, "_fields"):
            return type(value)(self._with_rows(part, (*path, place), sources) for place, part in enumerate(value))
        if type(value) is dict:
            return {name: self._with_rows(part, (*path, name), sources) for name, part in value.items()}
        return value

    def _rows_of(self, tensor: Tensor, path: Path, sources: Tensor | None) -> Tensor:
        if path == self._layers.hidden:
            return tensor if sources is None else self._grown(tensor, sources)
        by_row = self._layers.by_row.get(path)
        if by_row is None or (by_row and len(tensor) != self._rows):
            raise EngineError("a layer is called in another way than in the watched pass", found=str(path))
        if not by_row:
            return tensor
        assert self._of_text is not None  # set at the first branch point
        known = self._handed.get(id(tensor))
        if known is None:  # the tensor is kept with its rows, so that its id is not used again
            known = self._handed[id(tensor)] = (tensor, tensor.index_select(0, self._of_text))
        return known[1]
