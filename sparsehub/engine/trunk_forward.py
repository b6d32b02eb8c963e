"""Trunk and branches: one pass in which rows of one text run once up to the first layer that a task of theirs changes.

There the layer's input is handed to a row for each task, which from then on runs as in a mixed batch. For the time of
the pass the layers from the first branch point on (all of them, where they may run compiled) have a forward of their
own; before and after it nothing is on the model.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparsehub.engine.adapter_weights import AdapterWeights
from sparsehub.engine.compiled.layer_call import leaves_of, name_of, with_leaves
from sparsehub.engine.compiled.layer_programs import LayerPasses
from sparsehub.engine.layer_stack import LayerStack, Path
from sparsehub.engine.mixed_forward import MixedBatch, RowGroups
from sparsehub.engine.module_forwards import with_forwards
from sparsehub.engine.one_token import OneToken
from sparsehub.engine.state_cache import TextStates
from sparsehub.engine.target_modules import TargetModules
from sparsehub.engine.trunk_plan import TRUNK_SLOT, Stage, TrunkPlan
from sparsehub.errors import EngineError

# Tokens of branches that go through a layer together on a CPU. What a layer makes of them then stays in the caches.
TOGETHER = 2048


@dataclass(frozen=True)
class _Part:
    """Rows of a stage that go through its layers together."""

    rows: slice
    groups: RowGroups
    sources: Tensor  # by row, the row of the stage before that it goes on from
    of_text: Tensor  # by row, the first row of the batch with its text


class TrunkPass:
    """One pass of a trunk plan; `BatchRunner` makes one per batch. Its batch has the rows of the plan's first stage,
    its outputs those of the last.

    adapters: of the plan's slots from 1 on, in order; reads: which token of each of the last stage's rows is read,
    where it is one; kept: the texts whose states are known; together: tokens of branches that go through a layer
    together, as far as a layer keeps nothing; passes: that may have layers compiled.
    """

    def __init__(
        self,
        targets: TargetModules,
        plan: TrunkPlan[Any],
        adapters: Sequence[AdapterWeights],
        reads: OneToken | None = None,
        kept: TextStates | None = None,
        together: int = TOGETHER,
        passes: LayerPasses | None = None,
    ):
        assert targets.layers is not None  # or no plan would have been made
        self._layers: LayerStack = targets.layers
        self._stages = {stage.first: stage for stage in plan.stages[1:]}
        self._device, self._rows, self._first_row = targets.device, len(plan.stages[0].rows), plan.first_row
        readers = {index for first in self._stages for index in self._layers.readers[first]}
        bounds = plan.stages[0].bounds
        self._mixed = MixedBatch(targets, [None, *adapters], bounds, readers=readers) if adapters else None
        self._reads, self._kept, self._passes = reads, kept, passes
        self._stage, self._first_rows = plan.stages[0], plan.stages[0].rows
        if kept is not None and kept.known:
            self._stages[0] = _of_rows(plan.stages[0], kept.missing)
        self._together = together if self._device.type == "cpu" else 1 << 62
        self._input: Tensor | None = None  # of the stage that runs: a row for each row of the stage before
        self._parts: list[_Part] = []  # of that stage; the whole of it is `_whole`
        self._whole: _Part | None = None
        # by id and rows: what layers are called with, and these rows of it
        self._handed: dict[tuple[int, int, int], tuple[Tensor, Tensor]] = {}

    @contextmanager
    def on_model(self) -> Iterator[None]:
        """Inside, the backbone's module runs this pass."""
        first = 0 if self._passes is not None and self._passes.compiled is not None else min(self._stages, default=0)
        branching = range(first, len(self._layers.modules)) if self._stages else range(0)
        with ExitStack() as stack:
            if self._mixed is not None:
                stack.enter_context(self._mixed.on_model())
            if self._reads is not None and not branching:
                stack.enter_context(self._reads.on_model())
            modules = self._layers.modules
            stack.enter_context(with_forwards({modules[i]: functools.partial(self._layer, i) for i in branching}))
            yield

    def _layer(self, index: int, *args: Any, **kwargs: Any) -> Any:
        """A layer's forward: at a branch point with more rows than it was called with."""
        begins = index in self._stages
        if not begins and self._whole is None and self._stage.rows:  # before the first branch point
            return self._forward(index, args, kwargs)
        if begins:
            self._begin(self._stages[index], self._layers.hidden_of(args, kwargs))
        if not self._stage.rows:  # all states at the first branch point are known
            return self._layers.given(self._layers.hidden_of(args, kwargs))
        assert self._whole is not None  # the first of these layers is where a stage begins
        try:
            return self._all_parts(index, args, kwargs, begins)
        finally:
            if self._mixed is not None:
                self._mixed.end_sharing()
                self._mixed.regroup(self._whole.groups)  # what follows the last layer sees all rows

    def _all_parts(self, index: int, args: Any, kwargs: Any, begins: bool) -> Any:
        """What the layer gives for all rows, part by part where it keeps nothing and gives the states alone."""
        assert self._whole is not None
        if len(self._parts) > 1 and _keeps_nothing((args, kwargs)):
            first, *others = self._parts
            outputs = [self._run(index, first, args, kwargs, begins)]
            if _is_alone(outputs[0]):
                outputs += [self._run(index, part, args, kwargs, begins) for part in others]
                return _joined(outputs)
        return self._run(index, self._whole, args, kwargs, begins)

    def _run(self, index: int, part: _Part, args: Any, kwargs: Any, begins: bool) -> Any:
        if self._mixed is not None:
            self._mixed.regroup(part.groups)
        tensors = ((path, leaf) for path, leaf in leaves_of((args, kwargs)) if isinstance(leaf, Tensor))
        rows = {name_of(path): self._rows_of(tensor, path[1:], part, begins) for path, tensor in tensors}
        args, kwargs = with_leaves((args, kwargs), rows)
        if self._reads is not None and index == len(self._layers.modules) - 1:
            return self._reads.of_rows(part.rows).run(*args, **kwargs)
        return self._forward(index, args, kwargs)

    def _forward(self, index: int, args: Any, kwargs: Any) -> Any:
        """What a layer gives for the rows that it is called with: compiled where that is faster."""
        if self._passes is not None and self._mixed is not None:
            made_of = self._mixed.shared(self._layers.hidden_of(args, kwargs))
            branches = self._stage.rows[-1][0] != TRUNK_SLOT  # they are sorted
            found = self._passes.output(index, args, kwargs, self._mixed, made_of, branches=branches)
            if found is not None:
                return found
        module = self._layers.modules[index]
        return type(module).forward(module, *args, **kwargs)

    def _begin(self, stage: Stage, hidden: Tensor) -> None:
        """Go over to a stage. hidden: what its first layer is called with."""
        if self._kept is not None:
            hidden = self._with_kept(self._kept, stage, hidden)
        self._stage, self._input = stage, hidden
        if stage.rows:
            self._divide(stage, hidden.shape[1])

    def _divide(self, stage: Stage, length: int) -> None:
        """Lay a stage's rows out in parts. length: tokens of a row."""
        sources = self._indices(stage.sources)
        of_text = self._indices([self._first_row[text] for text in stage.texts])
        self._handed.clear()

        def part(rows: range) -> _Part:
            its = slice(rows.start, rows.stop)
            return _Part(its, RowGroups(stage.bounds_of(rows)), sources[its], of_text[its])

        count = len(stage.rows)
        step = max(1, self._together // length)
        self._whole = part(range(count))
        self._parts = [part(range(at, min(at + step, count))) for at in range(0, count, step)]

    def _with_kept(self, kept: TextStates, stage: Stage, hidden: Tensor) -> Tensor:
        """A stage's input with the states that are known; what it has of others is noted."""
        if stage.first == kept.entry:
            hidden = kept.completed(hidden)
            kept.note(stage.first, self._first_rows, hidden)
        elif stage.first > kept.entry:
            kept.note(stage.first, self._stage.rows, hidden)
        return hidden

    def _indices(self, rows: Sequence[int]) -> Tensor:
        return torch.tensor(rows, device=self._device)

    def _rows_of(self, tensor: Tensor, path: Path, part: _Part, begins: bool) -> Tensor:
        """What a layer is called with in one place, for the rows of a part."""
        if path == self._layers.hidden:
            return self._grown(part) if begins else tensor[part.rows]
        by_row = self._layers.by_row.get(path)
        if by_row is None or (by_row and len(tensor) != self._rows):
            raise EngineError("a layer is called in another way than in the watched pass", found=str(path))
        if not by_row:
            return tensor
        known = self._handed.get(key := (id(tensor), part.rows.start, part.rows.stop))
        if known is None:  # the tensor is kept with its rows, so that its id is not used again
            known = self._handed[key] = (tensor, tensor.index_select(0, part.of_text))
        return known[1]

    def _grown(self, part: _Part) -> Tensor:
        hidden = self._input
        assert hidden is not None and self._whole is not None  # the stage has begun
        grown = hidden.index_select(0, part.sources)
        if self._mixed is not None and self._whole.groups.rows > len(hidden):
            self._mixed.share(grown, hidden, part.sources)
        return grown


def _of_rows(stage: Stage, rows: Sequence[int]) -> Stage:
    """The layers from the first one to the first branch point for some of a first stage's rows."""
    return Stage(0, stage.layers, [stage.rows[row] for row in rows], rows)


def _keeps_nothing(value: Any) -> bool:
    """Whether a layer is called with nothing that outlives the call, such as a key-value cache."""
    if isinstance(value, tuple | list):
        return all(map(_keeps_nothing, value))
    if isinstance(value, dict):
        return all(map(_keeps_nothing, value.values()))
    return value is None or isinstance(value, Tensor | bool | int | float | str)


def _is_alone(output: Any) -> bool:
    """Whether a layer gives its states and nothing else."""
    if isinstance(output, tuple | list):
        return isinstance(output[0], Tensor) and all(other is None for other in output[1:])
    return isinstance(output, Tensor)


def _joined(outputs: Sequence[Any]) -> Any:
    """What a layer gave for the parts of its rows, as one."""
    first = outputs[0]
    if isinstance(first, tuple | list):
        return type(first)([_joined([output[0] for output in outputs]), *first[1:]])
    if first.ndim == 3 and first.stride(1) == 0:  # one token's state in all places: no memory is taken for them
        return torch.cat([output[:, :1] for output in outputs]).expand(-1, first.shape[1], -1)
    return torch.cat(list(outputs))
