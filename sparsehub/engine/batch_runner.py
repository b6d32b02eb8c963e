"""Run a batch in the cheapest way: one task in place, many tasks mixed, or one after the other."""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparsehub.backbone import Backbone
from sparsehub.engine.cost_model import GROUPED, MIXED, SWAP, CostModel, RowGroup
from sparsehub.engine.mixed import MixedBatch
from sparsehub.engine.pooling import Pool
from sparsehub.engine.resident import Resident
from sparsehub.engine.swap import Swap
from sparsehub.engine.target_modules import TargetModules
from sparsehub.package.encoding import Encoded, by_choice, pad
from sparsehub.package.heads import HeadModel, run_heads
from sparsehub.package.outputs import answers

AUTO = "auto"
MODES = (AUTO, SWAP, MIXED)


@dataclass(frozen=True)
class BatchRows:
    """Rows of one task. task None: the plain backbone; embed: pooled states are wanted, not the head."""

    rows: Sequence[Encoded]
    task: Resident | None
    embed: bool

    @functools.cached_property
    def sequences(self) -> int:
        return sum(len(row.sequences) for row in self.rows)

    @property
    def head(self) -> HeadModel | None:
        """None where pooled states are the answer."""
        return None if self.embed or self.task is None else self.task.head

    @functools.cached_property
    def answered(self) -> tuple[int, ...]:
        """Equal where the rows of two tasks can be answered together."""
        return (*self.head.alike, len(self.rows[0].sequences)) if self.head is not None else ()

    @functools.cached_property
    def group(self) -> RowGroup:
        longest, sequences = max(row.length for row in self.rows), self.sequences
        return RowGroup(sequences * longest, self.task.patch.nnz if self.task else 0, sequences, longest)


class Clock:
    """Laps of one batch, in seconds."""

    def __init__(self) -> None:
        self.start = self._last = time.monotonic()
        self.laps = {"switch": 0.0, "forward": 0.0, "head": 0.0}

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self.laps[name] += now - self._last
        self._last = now

    @property
    def backbone(self) -> float:
        """What the cost model predicts: all but the heads."""
        return self.laps["switch"] + self.laps["forward"]


@dataclass(frozen=True)
class ExecutionPlan:
    """How a batch runs. groups: its sizes; there: the first one's task is in the arena already; predictions: seconds by
    way of running, of all ways that were open to it."""

    mode: str
    groups: Sequence[RowGroup]
    there: bool
    predictions: dict[str, float]


class BatchRunner:
    """The only one that runs the model. Not thread-safe: the engine holds the arena's lock around every call."""

    def __init__(self, backbone: Backbone, targets: TargetModules, swap: Swap, tokenizer: Any, pool: Pool):
        self._backbone, self._targets, self._swap = backbone, targets, swap
        self._tokenizer, self._pool = tokenizer, pool

    def choose(self, groups: Sequence[BatchRows], costs: CostModel, wanted: str = AUTO) -> ExecutionPlan:
        """The way that the cost model says is cheapest, or the one that is wanted where it is open."""
        sizes = [rows.group for rows in groups]
        there = self._is_current(groups[0])
        alone = SWAP if len(groups) == 1 else GROUPED
        open_ways = [alone, *([MIXED] if self._can_mix(groups) else [])]
        predictions = {mode: costs.predict(mode, sizes, there=there) for mode in open_ways}
        if wanted == AUTO:
            mode = min(predictions, key=lambda mode: predictions[mode])
        else:
            mode = MIXED if wanted == MIXED and MIXED in predictions else alone
        return ExecutionPlan(mode, sizes, there, predictions)

    def _can_mix(self, groups: Sequence[BatchRows]) -> bool:
        tasks = [rows.task for rows in groups if rows.task is not None]
        return bool(tasks) and all(task.adapter is not None for task in tasks)

    def place(self, rows: BatchRows) -> tuple[bool, tuple[int, ...]]:
        """Where in a batch: the task that is in the arena already goes first, which saves a switch, and those that are
        answered in the same way are neighbours."""
        return not self._is_current(rows), rows.answered

    def _is_current(self, rows: BatchRows) -> bool:
        return (rows.task.patch if rows.task is not None else None) is self._swap.current

    @torch.inference_mode()
    def run(self, mode: str, groups: Sequence[BatchRows], clock: Clock) -> list[list[Any]]:
        """Each group's results, in order; one result a row. The heads' own time goes to the clock's `head`."""
        if mode == MIXED:
            return self._run_mixed(groups, clock)
        return [self._run_alone(rows, clock) for rows in groups]

    def _run_alone(self, rows: BatchRows, clock: Clock) -> list[Any]:
        self._swap.to(rows.task.patch if rows.task is not None else None)
        clock.lap("switch")
        inputs = self._pad([rows])
        outputs = self._backbone.module(**inputs)
        clock.lap("forward")
        (results,) = self._answer([rows], inputs, outputs)
        clock.lap("head")
        return results

    def _run_mixed(self, groups: Sequence[BatchRows], clock: Clock) -> list[list[Any]]:
        self._swap.to(None)
        clock.lap("switch")
        inputs, bounds = self._pad(groups), _bounds(groups)
        adapters = [rows.task.adapter if rows.task is not None else None for rows in groups]
        with MixedBatch(self._targets, adapters, bounds).on_model():
            outputs = self._backbone.module(**inputs)
        clock.lap("forward")
        results: list[list[Any]] = []
        for _, same in itertools.groupby(zip(groups, bounds, strict=True), lambda pair: pair[0].answered):
            run, places = zip(*same, strict=True)
            start, stop = places[0][1], places[-1][2]
            results += self._answer(run, _cut(inputs, start, stop), type(outputs)(**_cut(outputs, start, stop)))
        clock.lap("head")
        return results

    def _pad(self, groups: Sequence[BatchRows]) -> dict[str, Tensor]:
        sequences = [sequence for rows in groups for row in rows.rows for sequence in row.sequences]
        return pad(sequences, self._tokenizer, self._backbone.device)

    def _answer(self, groups: Sequence[BatchRows], inputs: dict[str, Tensor], outputs: Any) -> list[list[Any]]:
        """Of groups that are answered in the same way."""
        counts = [rows.sequences for rows in groups]
        heads = [head for rows in groups if (head := rows.head) is not None]
        if not heads:
            vectors = self._pool(outputs.last_hidden_state, inputs["attention_mask"])
            return [part.tolist() for part in vectors.split(counts)]
        shaped = {name: by_choice(tensor, groups[0].rows) for name, tensor in inputs.items()}
        logits = run_heads(heads, counts, shaped, outputs).split([len(rows.rows) for rows in groups])
        results: list[list[Any]] = []
        for rows, its in zip(groups, logits, strict=True):
            assert rows.task is not None  # it has a head
            results.append(answers(rows.task.info.spec, rows.rows, its))
        return results


def _bounds(groups: Sequence[BatchRows]) -> list[tuple[int, int, int]]:
    """(slot, first sequence, sequence after the last) of each group."""
    bounds, start = [], 0
    for slot, rows in enumerate(groups):
        bounds.append((slot, start, start + rows.sequences))
        start += rows.sequences
    return bounds


def _cut(tensors: Any, start: int, stop: int) -> dict[str, Tensor]:
    """Rows of every tensor by name; what is no tensor (a cache that nobody asked for) is left out."""
    return {name: tensor[start:stop] for name, tensor in tensors.items() if isinstance(tensor, Tensor)}
