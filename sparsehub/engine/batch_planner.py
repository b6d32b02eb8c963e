"""Planning a batch: what each open way of running it will cost, and which one is taken."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from sparsehub.backbone import Backbone
from sparsehub.engine.arena_manager import ArenaManager
from sparsehub.engine.batch_rows import BatchRows, by_task
from sparsehub.engine.calibrate import measure_points
from sparsehub.engine.cost_model import GROUPED, MIXED, SWAP, TRUNK, CostModel, RowGroup, TrunkSizes
from sparsehub.engine.scheduler import Item
from sparsehub.engine.state_cache import StateCache
from sparsehub.engine.target_modules import TargetModules
from sparsehub.engine.trunk_batch import TrunkBatch, trunk_batch
from sparsehub.errors import UsageError

AUTO = "auto"
MODES = (AUTO, SWAP, MIXED, TRUNK)


@dataclass(frozen=True)
class ExecutionPlan:
    """How a batch is to run; `BatchPlanner` makes it, and learns from what it took."""

    mode: str  # `swap`, `mixed`, `grouped-swap` or `trunk`
    groups: Sequence[RowGroup]  # its sizes, task by task
    there: bool  # whether the first task's patch is in the arena already
    predictions: dict[str, float]  # seconds of every way that is open to it
    trunk: TrunkBatch | None  # the batch as trunk and branches, where it can run so

    @property
    def trunk_sizes(self) -> TrunkSizes | None:
        """Of `trunk`, for the cost model."""
        return None if self.trunk is None else self.trunk.sizes


class BatchPlanner:
    """Says what a batch costs, for the scheduler, and how it is to run, for the model loop.

    max_tokens: of one sequence of the backbone; states: kept ones, with which a batch begins in the middle.
    """

    def __init__(
        self, arena: ArenaManager, backbone: Backbone, targets: TargetModules, max_tokens: int, states: StateCache
    ):
        self.mode = AUTO  # the cheapest way, or `swap`, `mixed` or `trunk` wherever it is open; may change
        self._arena, self._backbone, self._targets, self._max_tokens = arena, backbone, targets, max_tokens
        self._states = states

    @property
    def only_mixed(self) -> bool:
        """Whether every batch runs mixed, whatever the mode: nothing writes quantised weights."""
        return self._targets.quantised is not None

    @functools.cached_property
    def costs(self) -> CostModel:
        """What batches cost on this machine; measured at the first use, which must not be under the arena's lock."""
        with self._arena.lock:
            self._arena.swap.to(None)
            return CostModel(measure_points(self._backbone, self._targets, self._max_tokens))

    def cost_per_token(self, batch: Sequence[Item]) -> float:
        """Predicted seconds of a batch for each of its tokens, padding not counted; infinite where all of its rows were
        cancelled at this moment and their tasks evicted."""
        parts = [part.rows for part in by_task(batch)]
        if not parts:
            return math.inf
        parts.sort(key=self.position)
        plan = self.plan(parts)
        return plan.predictions[plan.mode] / sum(row.tokens for rows in parts for row in rows.rows)

    def plan(self, parts: Sequence[BatchRows]) -> ExecutionPlan:
        """The way that the cost model says is cheapest, or the one of `mode` where it is open."""
        costs = self.costs
        sizes = [rows.group for rows in parts]
        there = self._is_active(parts[0])
        alone = SWAP if len(parts) == 1 else GROUPED
        open_ways = [alone, *([MIXED] if _can_mix(parts) else [])] if not self.only_mixed else [MIXED]
        trunk = trunk_batch(parts, self._targets, self._states) if self.mode in (AUTO, TRUNK) else None
        if trunk is not None:
            open_ways.append(TRUNK)
        shared = None if trunk is None else trunk.sizes
        predictions = {mode: costs.predict(mode, sizes, there=there, trunk=shared) for mode in open_ways}
        if self.mode == AUTO and trunk is not None and trunk.resumes:
            mode = TRUNK  # what is not kept now is kept by it; whoever has states kept expects their texts again
        elif self.mode == AUTO:
            mode = min(predictions, key=lambda mode: predictions[mode])
        else:
            wanted = {SWAP: [alone, MIXED], MIXED: [MIXED, alone], TRUNK: [TRUNK, MIXED, alone]}[self.mode]
            mode = next(mode for mode in wanted if mode in predictions)
        return ExecutionPlan(mode, sizes, there, predictions, trunk)

    def learn(self, plan: ExecutionPlan, seconds: float) -> None:
        """Correct the cost model by what a batch took. seconds: without its heads."""
        self.costs.learn(plan.mode, plan.groups, seconds, there=plan.there, trunk=plan.trunk_sizes)

    def position(self, rows: BatchRows) -> tuple[bool, tuple[int, ...]]:
        """A sort key for the parts of a batch: the task in the arena goes first, which saves a switch, and tasks whose
        heads run as one are neighbours."""
        return not self._is_active(rows), rows.answered

    def _is_active(self, rows: BatchRows) -> bool:
        return (rows.task.patch if rows.task is not None else None) is self._arena.swap.current


def check_mode(mode: str) -> str:
    """The mode itself; raises `UsageError` for one that there is not."""
    if mode not in MODES:
        raise UsageError("unknown way of running batches", found=mode, expected=", ".join(MODES))
    return mode


def _can_mix(parts: Sequence[BatchRows]) -> bool:
    tasks = [rows.task for rows in parts if rows.task is not None]
    return bool(tasks) and all(task.adapter is not None for task in tasks)
