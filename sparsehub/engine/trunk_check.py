"""The check of trunk and branches at start-up: on this backbone, rows that ran once for several tasks give what each
task's own weights give."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from sparsehub.backbone import Backbone
from sparsehub.delta import Delta
from sparsehub.engine.adapter_weights import AdapterWeights, make_adapter_weights
from sparsehub.engine.layer_stack import LayerStack, find_layers, with_targets
from sparsehub.engine.mixing_check import ALLOWED, loud_delta
from sparsehub.engine.one_token import find_cuts, gives_the_same
from sparsehub.engine.state_cache import StateCache, Text, TextStates
from sparsehub.engine.target_modules import CONV1D, LINEAR, TargetModules, sample_batch
from sparsehub.engine.trunk_forward import TrunkPass
from sparsehub.engine.trunk_plan import plan_trunk
from sparsehub.patch import Patch, make_patch, patched

TEXTS, LENGTH = 3, 6
log = logging.getLogger("sparsehub")


def with_layers(backbone: Backbone, targets: TargetModules) -> TargetModules:
    """The target modules, with the backbone's layer stack where trunk and branches are proved on it; else with the
    reason, which is logged too. `Engine` asks once; the arena must hold the base weights."""
    if targets.why_no_trunk is not None:  # nothing can be mixed, which was logged
        return targets
    try:
        found = _stack(backbone, targets)
        problem = found if isinstance(found, str) else None
        if isinstance(found, LayerStack):
            targets = dataclasses.replace(targets, layers=found)
            problem = _problem(backbone, targets, found)
    except Exception as error:  # a model that is called in a way of its own
        problem = f"its layers cannot be watched: {type(error).__name__}: {error}"[:300]
    if problem is None:
        return targets
    log.warning("tasks on %s share no layers: %s", backbone.checkpoint.id, problem)
    return dataclasses.replace(targets, layers=None, why_no_trunk=problem)


def with_resuming(backbone: Backbone, targets: TargetModules) -> TargetModules:
    """The target modules, with `LayerStack.resumes` where it is proved that rows whose states at a branch point are
    known need no layer before it; else the reason is logged. `Engine` asks once, where states are to be kept; the arena
    must hold the base weights."""
    if targets.layers is None:
        problem = targets.why_no_trunk
    else:
        try:
            problem = _problem_of_resuming(backbone, targets, targets.layers)
        except Exception as error:  # a model that is called in a way of its own
            problem = f"its layers cannot be left out: {type(error).__name__}: {error}"[:300]
        if problem is None:
            return dataclasses.replace(targets, layers=dataclasses.replace(targets.layers, resumes=True))
    log.warning("no states of texts are kept on %s: %s", backbone.checkpoint.id, problem)
    return targets


def _stack(backbone: Backbone, targets: TargetModules) -> LayerStack | str:
    batches = [_ragged(backbone, rows) for rows in (TEXTS, TEXTS + 1)]
    stack = find_layers(backbone.module, batches)
    if isinstance(stack, str):
        return stack
    stack = with_targets(backbone.module, stack, [target.module for target in targets.targets], batches[0])
    last = set(stack.modules[-1].modules())
    candidates = [t.module for t in targets.targets if t.module in last and t.kind in (LINEAR, CONV1D)]
    lengths = [_ragged(backbone, TEXTS, length) for length in (LENGTH, LENGTH + 1)]
    found = find_cuts(stack, candidates, backbone.module, lengths)
    if found.token_from is None:
        return found
    patch = make_patch(backbone, loud_delta(backbone, targets))  # what base weights hardly use, a task may use
    with patched(backbone.arena, patch):
        return found if gives_the_same(found, backbone.module, lengths) else stack


def _ragged(backbone: Backbone, rows: int, length: int = LENGTH) -> dict[str, Tensor]:
    """A batch with padding behind its last row, so that masks are made."""
    batch = sample_batch(backbone, rows, length)
    batch["attention_mask"][-1, length // 2 :] = 0
    return batch


@torch.inference_mode()
def _problem(backbone: Backbone, targets: TargetModules, stack: LayerStack) -> str | None:
    """What is wrong with trunk and branches; None where they are right.

    Every text is for the plain backbone, for a task that changes the last layer, for one that changes the upper half,
    and, but for the first text, for one that changes everything.
    """
    count = len(stack.modules)
    patches = [_patch_from(backbone, targets, first) for first in (count - 1, count // 2, -1)]
    adapters = [make_adapter_weights(targets, backbone.arena, patch) for patch in patches]
    if not all(isinstance(adapter, AdapterWeights) for adapter in adapters):
        return next(adapter for adapter in adapters if isinstance(adapter, str))
    sound = [adapter for adapter in adapters if isinstance(adapter, AdapterWeights)]
    batch = _ragged(backbone, TEXTS)
    wanted = [(text, task) for task in range(-1, len(sound)) for text in range(TEXTS) if text or task < 2]
    plan = plan_trunk([(t, t, k, sound[k].first if k >= 0 else count) for t, k in wanted], count)
    rows = torch.tensor(plan.stages[0].texts, device=backbone.device)
    adapters_of_slots = [sound[task] for task in _tasks(plan.slots)]
    with TrunkPass(targets, plan, adapters_of_slots, together=2 * LENGTH).on_model():  # two rows at a time
        states = backbone.module(**{name: tensor[rows] for name, tensor in batch.items()}).last_hidden_state.float()
    plain = backbone.module(**batch).last_hidden_state.float()
    alone = [plain, *(_in_place(backbone, patch, batch) for patch in patches)]
    real = batch["attention_mask"].bool()
    for place, (text, task) in zip(plan.places, wanted, strict=True):
        right = alone[task + 1][text][real[text]]
        wrong = float((states[place][real[text]] - right).abs().max())
        moved = float((alone[-1] - plain)[real].abs().max())
        if not wrong <= ALLOWED[backbone.dtype] * moved:
            return f"a shared row is off by {wrong:.2g} where a change moves outputs by {moved:.2g}"
    return None


@torch.inference_mode()
def _problem_of_resuming(backbone: Backbone, targets: TargetModules, stack: LayerStack) -> str | None:
    """What is wrong with passes in which no states are known, then those of one text, then all; None where they are
    right."""
    count = len(stack.modules)
    patch = _patch_from(backbone, targets, max(1, count // 2))
    adapter = make_adapter_weights(targets, backbone.arena, patch)
    if not isinstance(adapter, AdapterWeights) or adapter.first >= count:
        return "no task would branch behind a layer"
    batch, states = _ragged(backbone, TEXTS), StateCache(backbone, 1 << 40, left=False)
    real = batch["attention_mask"].bool()
    texts: list[Text] = [{"input_ids": ids[own].tolist()} for ids, own in zip(batch["input_ids"], real, strict=True)]
    right, plain = _in_place(backbone, patch, batch), backbone.module(**batch).last_hidden_state.float()
    moved = float((right - plain)[real].abs().max())
    for rows in ([0], range(TEXTS), range(TEXTS)):
        plan = plan_trunk([(bytes([row]), texts[row], patch, adapter.first) for row in rows], count)
        kept = TextStates(states, plan)
        with TrunkPass(targets, plan, [adapter], kept=kept, together=2 * LENGTH).on_model():
            found = backbone.module(**{name: tensor[list(rows)] for name, tensor in batch.items()}).last_hidden_state
        kept.keep()
        wrong = max(float((found[row] - right[row])[real[row]].abs().max()) for row in rows)
        if not wrong <= ALLOWED[backbone.dtype] * moved:
            return f"a row that began in the middle is off by {wrong:.2g} where a change moves outputs by {moved:.2g}"
    return None


def _tasks(slots: object) -> Sequence[int]:
    assert isinstance(slots, dict)
    return list(slots)


def _patch_from(backbone: Backbone, targets: TargetModules, first: int) -> Patch:
    """Large changes in every place that can be mixed and that is first used in this layer or after it."""
    delta = loud_delta(backbone, targets)
    parts = {
        name: part
        for name, part in delta.parameters.items()
        if targets.first_changed([t.index for t, _ in targets.uses[backbone.arena.slots[name]]]) >= first
    }
    return make_patch(backbone, Delta(parts, "add", "float32"))


def _in_place(backbone: Backbone, patch: Patch, batch: dict[str, Tensor]) -> Tensor:
    with patched(backbone.arena, patch):
        states: Tensor = backbone.module(**batch).last_hidden_state
        return states.float()
