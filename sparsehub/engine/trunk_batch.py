"""A batch as trunk and branches: its plan and sizes, for the batch planner, and the rows that heads read after it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparsehub.engine.adapter_weights import AdapterWeights
from sparsehub.engine.batch_rows import BatchRows
from sparsehub.engine.cost_model import RowGroup, TrunkSizes
from sparsehub.engine.state_cache import StateCache, Text, trunk_rows
from sparsehub.engine.target_modules import TargetModules
from sparsehub.engine.trunk_plan import TrunkPlan, plan_trunk
from sparsehub.package.pooling import pool, token_of
from sparsehub.package.task_spec import FIRST, LAST


@dataclass(frozen=True)
class TrunkBatch:
    """A batch that can run as trunk and branches, and runs fewer rows so. The plan's tasks are digests, its texts
    token ids by the tokenizer's names."""

    plan: TrunkPlan[Text]
    sizes: TrunkSizes  # for the cost model
    resumes: bool  # whether states of its texts may be kept, and taken where they were

    @property
    def sequences(self) -> list[Text]:
        """What the backbone gets, row by row of the first stage."""
        return [self.plan.texts[text] for text in self.plan.stages[0].texts]

    def adapters(self, parts: Sequence[BatchRows]) -> list[AdapterWeights]:
        """Of the plan's slots from 1 on."""
        known = {rows.task.info.digest: rows.task.adapter for rows in parts if rows.task is not None}
        return [adapter for digest in self.plan.slots if (adapter := known[str(digest)]) is not None]


def trunk_batch(
    parts: Sequence[BatchRows], targets: TargetModules, states: StateCache | None = None
) -> TrunkBatch | None:
    """The parts of a batch as trunk and branches; None where that is not proved on this backbone, where a task cannot
    be mixed, and where no row runs less often so. states: kept ones, for which a row may run less often next time."""
    keeps = states is not None and states.on and targets.layers is not None and targets.layers.resumes
    keys = [key for rows in parts for row in rows.rows for key in row.keys]
    if targets.layers is None or (len(set(keys)) == len(keys) and not keeps):
        return None
    if any(rows.task is not None and rows.task.adapter is None for rows in parts):
        return None
    layers = len(targets.layers.modules)
    sequences = (sequence for rows in parts for row in rows.rows for sequence in row.sequences)
    tasks = (
        (rows.task and rows.task.info.digest, rows.first) for rows in parts for _ in range(rows.sequences)
    )  # by sequence
    plan = plan_trunk(((key, text, *task) for key, text, task in zip(keys, sequences, tasks, strict=True)), layers)
    resumes = keeps and plan.entry is not None
    if not plan.saves and not resumes:
        return None
    return TrunkBatch(plan, _sizes(plan, parts, layers, states if resumes else None), resumes)


def _sizes(plan: TrunkPlan[Text], parts: Sequence[BatchRows], layers: int, states: StateCache | None) -> TrunkSizes:
    longest = max(len(text["input_ids"]) for text in plan.texts)
    entries = {rows.task.info.digest: rows.task.patch.nnz for rows in parts if rows.task is not None}
    rows_of = Counter(slot for slot, _ in plan.stages[-1].rows)
    branches = [
        RowGroup(rows_of[slot] * longest, entries[str(digest)], rows_of[slot], longest)
        for digest, slot in plan.slots.items()
    ]
    runs = [len(stage.rows) for stage in plan.stages]
    if states is not None and plan.entry is not None:
        texts = (text for _, text in trunk_rows(plan.stages[0].rows))
        runs[0] -= sum(states.has(states.key(plan, text, plan.entry)) for text in texts)
    stages = [(stage.layers / layers, rows * longest) for stage, rows in zip(plan.stages, runs, strict=True) if rows]
    return TrunkSizes(stages, branches)


def taken(tensors: Any, rows: Sequence[int]) -> dict[str, Tensor]:
    """Rows of every tensor, by name; what is no tensor (a key-value cache) is left out."""
    return {
        name: tensor[torch.tensor(rows, device=tensor.device)]
        for name, tensor in tensors.items()
        if isinstance(tensor, Tensor)
    }


def pooled(pooling: str, states: Tensor, mask: Tensor, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Rows of states, each pooled to one token, with their mask. What several tasks read is pooled once.

    states: [rows, length, width]; mask: [sequences, length], of each of `rows`.
    """
    first = {row: place for place, row in reversed([*enumerate(rows)])}
    once = sorted(first)
    places = {row: number for number, row in enumerate(once)}
    index = torch.tensor(once, device=states.device)
    its = mask[torch.tensor([first[row] for row in once], device=mask.device)]
    if pooling in (FIRST, LAST):
        vectors = states[index, token_of(pooling, its)].float()
    else:
        every = len(once) == len(states)  # as of a batch whose heads all pool alike: no copy is made
        vectors = pool(pooling, states if every else states[index], its)
    chosen = vectors[torch.tensor([places[row] for row in rows], device=states.device)]
    return chosen.unsqueeze(1), mask.new_ones(len(rows), 1)
