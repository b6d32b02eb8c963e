"""Running a batch: one task in place, many tasks mixed in one pass, or one after the other."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from sparsehub.backbone import Backbone
from sparsehub.engine.batch_rows import BatchRows
from sparsehub.engine.compiled.layer_programs import LayerPasses
from sparsehub.engine.compiled.mixed_pass import MixedPass
from sparsehub.engine.compiled.plain_pass import PlainPass
from sparsehub.engine.cost_model import MIXED, TRUNK
from sparsehub.engine.mixed_forward import MixedBatch
from sparsehub.engine.one_token import OneToken
from sparsehub.engine.state_cache import StateCache, TextStates
from sparsehub.engine.swap import Swap
from sparsehub.engine.target_modules import TargetModules
from sparsehub.engine.trunk_batch import TrunkBatch, pooled, taken
from sparsehub.engine.trunk_forward import TrunkPass
from sparsehub.engine.trunk_plan import TrunkPlan
from sparsehub.errors import NotFiniteError
from sparsehub.kernels.sparse import bounds_of
from sparsehub.package.encoding import by_choice, pad
from sparsehub.package.heads import run_heads
from sparsehub.package.outputs import answers, finite_rows
from sparsehub.package.pooling import pooling_of, token_of, vectors_of
from sparsehub.package.task_spec import FIRST, LAST, NONE, HeadSpec


class Clock:
    """Where the time of one batch goes; `BatchRunner` takes the laps, `ModelLoop` reports them."""

    def __init__(self) -> None:
        self.start = self._last = time.monotonic()
        self.laps = {"switch": 0.0, "forward": 0.0, "head": 0.0}  # seconds

    def lap(self, name: str) -> None:
        """Add the time since the last lap to `name`."""
        now = time.monotonic()
        self.laps[name] += now - self._last
        self._last = now

    @property
    def backbone(self) -> float:
        """Seconds that the cost model predicts: all but the heads."""
        return self.laps["switch"] + self.laps["forward"]


class BatchRunner:
    """Runs the backbone and the heads for `ModelLoop`. Not thread-safe: the arena's lock is held around every call."""

    def __init__(
        self,
        backbone: Backbone,
        plain: PlainPass,
        mixed: MixedPass,
        layers: LayerPasses,
        targets: TargetModules,
        swap: Swap,
        tokenizer: Any,
        states: StateCache,
    ):
        self._backbone, self._plain, self._mixed, self._targets, self._swap = backbone, plain, mixed, targets, swap
        self._layers = layers
        self._tokenizer, self._states = tokenizer, states
        self._pooled = HeadSpec(NONE, pooling_of(backbone.checkpoint.folder), normalize=True)  # where no task says

    @torch.inference_mode()
    def run(
        self, mode: str, groups: Sequence[BatchRows], clock: Clock, trunk: TrunkBatch | None = None
    ) -> list[list[Any]]:
        """Each group's results, in order; one result a row, or its error where that is not a number.

        mode: `mixed`, `trunk`, or any other way for one group after the other; trunk: the groups, for that way.
        """
        if mode == TRUNK and trunk is not None:
            return self._run_trunk(groups, trunk, clock)
        if mode == MIXED or self._targets.quantised is not None:
            return self._run_mixed(groups, clock)
        return [self._run_alone(rows, clock) for rows in groups]

    def _run_alone(self, rows: BatchRows, clock: Clock) -> list[Any]:
        self._swap.to(rows.task.patch if rows.task is not None else None)
        clock.lap("switch")
        inputs = self._pad([rows])
        reads = None if self._plain.takes(inputs) else self._one_token([rows], inputs["attention_mask"])
        with reads.on_model() if reads is not None else nullcontext():
            outputs = self._plain(inputs)
        clock.lap("forward")
        (results,) = self._answer([rows], inputs, outputs)
        clock.lap("head")
        return results

    def _run_mixed(self, groups: Sequence[BatchRows], clock: Clock) -> list[list[Any]]:
        self._swap.to(None)
        clock.lap("switch")
        inputs, bounds = self._pad(groups), bounds_of(rows.sequences for rows in groups)
        adapters = [rows.task.adapter if rows.task is not None else None for rows in groups]
        batch = MixedBatch(self._targets, adapters, bounds)
        reads = None if self._mixed.takes(inputs) else self._one_token(groups, inputs["attention_mask"])
        outputs = self._mixed(batch, inputs, reads)
        clock.lap("forward")
        results: list[list[Any]] = []
        for _, same in itertools.groupby(zip(groups, bounds, strict=True), lambda pair: pair[0].answered):
            run, places = zip(*same, strict=True)
            start, stop = places[0][1], places[-1][2]
            results += self._answer(run, _cut(inputs, start, stop), type(outputs)(**_cut(outputs, start, stop)))
        clock.lap("head")
        return results

    def _run_trunk(self, groups: Sequence[BatchRows], trunk: TrunkBatch, clock: Clock) -> list[list[Any]]:
        self._swap.to(None)
        clock.lap("switch")
        inputs = pad(trunk.sequences, self._tokenizer, self._backbone.device)
        outputs = self._trunk_outputs(groups, trunk, inputs)
        clock.lap("forward")
        results: list[list[Any]] = []
        bounds = bounds_of(rows.sequences for rows in groups)
        for _, same in itertools.groupby(zip(groups, bounds, strict=True), lambda pair: pair[0].answered):
            run, places = zip(*same, strict=True)
            its = slice(places[0][1], places[-1][2])
            results += self._answer(run, *self._branches(run, inputs, outputs, trunk.plan, its))
        clock.lap("head")
        return results

    def _trunk_outputs(self, groups: Sequence[BatchRows], trunk: TrunkBatch, inputs: dict[str, Tensor]) -> Any:
        plan, adapters = trunk.plan, trunk.adapters(groups)
        if not adapters and self._plain.takes(inputs):
            return self._plain(inputs)
        first = torch.tensor([plan.first_row[text] for text in plan.stages[-1].texts], device=self._backbone.device)
        reads = self._one_token(groups, inputs["attention_mask"][first])
        kept = TextStates(self._states, plan) if trunk.resumes else None
        with TrunkPass(self._targets, plan, adapters, reads, kept, passes=self._layers).on_model():
            outputs = self._backbone.module(**inputs)
        if kept is not None:
            kept.keep()
        return outputs

    def _one_token(self, groups: Sequence[BatchRows], mask: Tensor) -> OneToken | None:
        """The cut of the last layer where all heads of a batch read the first token, or all the last. mask: [rows,
        length], of the rows that leave the backbone."""
        poolings = {self._pooling_of(rows) for rows in groups}
        pooling, layers = poolings.pop(), self._targets.layers
        if poolings or pooling not in (FIRST, LAST) or layers is None or layers.token_from is None:
            return None
        return OneToken(layers, token_of(pooling, mask)) if mask.shape[1] > 1 else None

    def _pooling_of(self, rows: BatchRows) -> str | None:
        """How the answers of rows pool their states; None where a head of transformers does so itself."""
        return (rows.pooled or self._pooled).pooling if rows.head is None else rows.head.pooling

    def _branches(
        self, run: Sequence[BatchRows], inputs: dict[str, Tensor], outputs: Any, plan: TrunkPlan[Any], its: slice
    ) -> tuple[dict[str, Tensor], Any]:
        """The inputs and outputs of sequences of a trunk's batch, as their heads read them."""
        own = taken(inputs, plan.origins[its])
        pooling = self._pooling_of(run[0])
        if pooling is None:
            return own, type(outputs)(**taken(outputs, plan.places[its]))
        states, mask = pooled(pooling, outputs.last_hidden_state, own["attention_mask"], plan.places[its])
        return {"attention_mask": mask}, type(outputs)(last_hidden_state=states)

    def _pad(self, groups: Sequence[BatchRows]) -> dict[str, Tensor]:
        sequences = [sequence for rows in groups for row in rows.rows for sequence in row.sequences]
        return pad(sequences, self._tokenizer, self._backbone.device)

    def _answer(self, groups: Sequence[BatchRows], inputs: dict[str, Tensor], outputs: Any) -> list[list[Any]]:
        """The answers of groups whose heads run as one."""
        counts = [rows.sequences for rows in groups]
        heads = [head for rows in groups if (head := rows.head) is not None]
        if not heads:
            vectors = vectors_of(groups[0].pooled or self._pooled, outputs.last_hidden_state, inputs["attention_mask"])
            sound = vectors.isfinite().all(-1) & vectors.any(-1)  # where the length is infinite, the unit vector is 0
            parts = zip(sound.split(counts), vectors.split(counts), strict=True)
            return [_finite_or_error(finite.tolist(), part.tolist()) for finite, part in parts]
        every = [row for rows in groups for row in rows.rows]
        shaped = {name: by_choice(tensor, every) for name, tensor in inputs.items()}
        logits = run_heads(heads, counts, shaped, outputs).split([len(rows.rows) for rows in groups])
        results: list[list[Any]] = []
        for rows, its in zip(groups, logits, strict=True):
            assert rows.task is not None  # it has a head
            spec = rows.task.info.spec
            results.append(_finite_or_error(finite_rows(spec, rows.rows, its), answers(spec, rows.rows, its)))
        return results


def _finite_or_error(finite: Sequence[bool], results: Sequence[Any]) -> list[Any]:
    """Each row's result, or its own error where it is made of NaN or infinity."""
    return [result if sound else NotFiniteError() for sound, result in zip(finite, results, strict=True)]


def _cut(tensors: Any, start: int, stop: int) -> dict[str, Tensor]:
    """Rows of every tensor, by name; what is no tensor (a key-value cache) is left out."""
    return {name: tensor[start:stop] for name, tensor in tensors.items() if isinstance(tensor, Tensor)}
