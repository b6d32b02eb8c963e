"""The check of mixed batches at start-up: on this backbone, a mixed pass gives what the changed weights give."""

from __future__ import annotations

import logging
from collections.abc import Collection
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from sparsehub.backbone import Backbone, Slot
from sparsehub.delta import Delta, ParameterDelta
from sparsehub.engine.adapter_weights import AdapterWeights, make_adapter_weights
from sparsehub.engine.mixed_forward import MixedBatch
from sparsehub.engine.target_modules import TargetModules, find_target_modules, nothing_mixes, sample_batch
from sparsehub.patch import make_patch, patched

ENTRIES = 64  # changed in every place, or a thousandth of the place where that is more
ROWS, LENGTH = 2, 6
# The largest difference, as a share of what the change moves the outputs by: rounding passes, a missed module does not.
ALLOWED = {torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.2}
log = logging.getLogger("sparsehub")


def checked_targets(backbone: Backbone) -> TargetModules:
    """The modules of a backbone that can be mixed, proved on a small batch; none where the proof fails, with the reason
    in the log. `Engine` asks once; the arena must hold the base weights."""
    try:
        targets = find_target_modules(backbone)
        problem = _problem(backbone, targets) if targets.uses else None
    except Exception as error:  # a model that a plain batch of ids does not suit
        problem = f"its modules cannot be watched: {type(error).__name__}: {error}"[:300]
    if problem is None:
        return targets
    log.warning("tasks on %s run by swap alone: %s", backbone.checkpoint.id, problem)
    return nothing_mixes(backbone.arena, problem)


@torch.inference_mode()
def _problem(backbone: Backbone, targets: TargetModules) -> str | None:
    """What is wrong with mixed passes; None where they are right."""
    patch = make_patch(backbone, loud_delta(backbone, targets))
    adapter = make_adapter_weights(targets, backbone.arena, patch)
    assert isinstance(adapter, AdapterWeights)  # it changes nothing but what can be mixed
    batch = sample_batch(backbone, ROWS, LENGTH)
    with MixedBatch(targets, [adapter], [(0, 0, ROWS)]).on_model():
        mixed = _states(backbone, batch)
    plain = _states(backbone, batch)
    with patched(backbone.arena, patch):
        changed = _states(backbone, batch)
    wrong, moved = float((mixed - changed).abs().max()), float((changed - plain).abs().max())
    if wrong <= ALLOWED[backbone.dtype] * moved:
        return None
    return f"a mixed pass is off by {wrong:.2g} where the change moves outputs by {moved:.2g}"


def _states(backbone: Backbone, batch: dict[str, Tensor]) -> Tensor:
    outputs = backbone.whole(**batch)  # of a language model the logits: its output layer is to be proved too
    states: Tensor = outputs.last_hidden_state if backbone.language_model is None else outputs.logits
    return states.float()


def loudly_changed(backbone: Backbone) -> AbstractContextManager[None]:
    """Inside, every parameter has a large change, as `patched` does it: the proofs of programs, which read the weights
    where they lie, run there."""
    return patched(backbone.arena, make_patch(backbone, loud_changes(backbone, set(backbone.arena.slots.values()))))


def loud_delta(backbone: Backbone, targets: TargetModules) -> Delta:
    """Large changes of a few entries in every place that can be mixed, for this check and that of text generation."""
    return loud_changes(backbone, [slot for slot in targets.uses if slot not in targets.others])


def loud_changes(backbone: Backbone, places: Collection[Slot]) -> Delta:
    """Large changes of a few entries in each of these places of the arena; checks of passes apply them."""
    generator, parts = torch.Generator().manual_seed(0), {}
    for slot, name in {slot: name for name, slot in backbone.arena.slots.items() if slot in places}.items():
        count = max(ENTRIES, slot.numel // 1000)
        entries = torch.randint(slot.numel, (count,), generator=generator).unique()
        scale = float(backbone.arena.view(name).float().std(correction=0)) or 0.1
        parts[name] = ParameterDelta(slot.shape, entries, torch.randn(len(entries), generator=generator) * scale)
    return Delta(parts, "add", "float32")
