"""Calibration: measures the points of the cost model, on the machine and the backbone at hand."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch

from sparsehub.backbone import Backbone
from sparsehub.delta import Delta, ParameterDelta
from sparsehub.engine.adapter_weights import AdapterWeights, make_adapter_weights
from sparsehub.engine.base_weights import on_base
from sparsehub.engine.cost_model import CalibrationPoints, RowGroup, padded_tokens, work_of
from sparsehub.engine.mixed_forward import MixedBatch
from sparsehub.engine.target_modules import TargetModules, sample_batch
from sparsehub.patch import Patch, apply_patch, make_patch, restore_patch

CALIBRATION_SECONDS = 10.0  # for all points together; a machine on which they take longer gets fewer of them
FORWARD_SECONDS = 1.5  # after so long no further forward is measured; the first two always are
DENSITY = 0.005  # of the patches that are measured
MOST_ENTRIES = 1 << 20  # of one of them
FORWARDS = ((1, 8), (1, 32), (4, 32), (16, 32), (32, 64))  # rows, tokens of each
BATCHES = ((2, 2, 8), (2, 16, 16), (16, 16, 16))  # tasks, rows, tokens of each
REPEATS = 3
LONG = 0.5  # seconds; a run that takes longer is not repeated: what disturbs it is small beside it


@torch.inference_mode()
def measure_points(backbone: Backbone, targets: TargetModules, max_tokens: int) -> CalibrationPoints:
    """Measure forwards, switches and mixed batches; `BatchPlanner` makes its cost model of them.

    The arena must hold the base weights, and holds them again afterwards. max_tokens: of one sequence. Points for
    which `CALIBRATION_SECONDS` leave no time are left out, but for the few that the model cannot do without.
    """
    end = time.monotonic() + CALIBRATION_SECONDS
    forward = _forward_points(backbone, targets, max_tokens)
    patches = [_random_patch(backbone, targets, share) for share in (1.0, 0.1)]
    switch = [(patch.nnz, _switch_seconds(backbone, patch)) for patch in patches]
    batches = _batches_until(end, forward)
    return CalibrationPoints(forward, switch, _sparse_points(backbone, targets, patches, batches, max_tokens))


def _forward_points(backbone: Backbone, targets: TargetModules, max_tokens: int) -> list[tuple[int, float]]:
    """(tokens, seconds) of plain forwards, both rising: two at least, others while there is time and they are short."""
    end = time.monotonic() + FORWARD_SECONDS
    points: list[tuple[int, float]] = []
    for rows, length in FORWARDS:
        tokens = rows * length
        if len(points) > 1 and (time.monotonic() > end or _expected(points, tokens) > FORWARD_SECONDS):
            break
        points.append((tokens, _forward_seconds(backbone, targets, rows, min(length, max_tokens))))
    return _rising(points)


def _expected(points: Sequence[tuple[int, float]], tokens: int) -> float:
    """Seconds of a forward, extrapolated from the largest one."""
    return max(seconds for _, seconds in points) * tokens / max(count for count, _ in points)


def _batches_until(end: float, forward: Sequence[tuple[int, float]]) -> Iterator[tuple[int, int, int]]:
    """The mixed batches for which there is time until `end`, each when the one before was measured; one at least."""
    for number, (tasks, rows, length) in enumerate(BATCHES):
        pair = 2 * _expected(forward, rows * length)  # with and without its tasks
        if number and time.monotonic() + pair * (1 if pair > LONG else REPEATS) > end:
            return
        yield tasks, rows, length


def _sparse_points(
    backbone: Backbone,
    targets: TargetModules,
    patches: Sequence[Patch],
    batches: Iterable[tuple[int, int, int]],
    max_tokens: int,
) -> list[tuple[int, float, float]]:
    """(tokens, work, seconds) of mixed batches; empty where nothing can be mixed."""
    if not targets.targets or not targets.uses:
        return []
    adapters = [
        adapter
        for patch in patches
        if isinstance(adapter := make_adapter_weights(targets, backbone.arena, patch), AdapterWeights)
    ]
    points = []
    for tasks, rows, length in batches:
        length = min(length, max_tokens)
        bounds = [(slot, slot * rows // tasks, (slot + 1) * rows // tasks) for slot in range(tasks)]
        chosen = [slot % 2 for slot in range(tasks)]
        groups = [
            RowGroup((b - a) * length, patches[i].nnz, b - a, length)
            for i, (_, a, b) in zip(chosen, bounds, strict=True)
        ]
        seconds = _extra_seconds(backbone, targets, [adapters[i] for i in chosen], bounds, length)
        points.append((padded_tokens(groups), work_of(groups), seconds))
    return points


def _extra_seconds(
    backbone: Backbone,
    targets: TargetModules,
    adapters: Sequence[AdapterWeights],
    bounds: Sequence[tuple[int, int, int]],
    length: int,
) -> float:
    """Seconds that a mixed forward takes beyond the plain one of the same rows, measured in turn."""
    batch = sample_batch(backbone, bounds[-1][2], length)

    def mixed() -> None:
        with MixedBatch(targets, adapters, bounds).on_model():
            backbone.module(**batch)

    def plain() -> None:
        with on_base(targets, bounds[-1][2]):
            backbone.module(**batch)

    pairs: list[tuple[float, float]] = []
    while len(pairs) < REPEATS and not (pairs and sum(pairs[-1]) > LONG):
        pairs.append((_best_seconds(backbone, mixed, 1), _best_seconds(backbone, plain, 1)))
    return max(0.0, min(m for m, _ in pairs) - min(p for _, p in pairs))


def _forward_seconds(backbone: Backbone, targets: TargetModules, rows: int, length: int) -> float:
    batch = sample_batch(backbone, rows, length)
    with on_base(targets, rows):
        return _best_seconds(backbone, lambda: backbone.module(**batch))


def _switch_seconds(backbone: Backbone, patch: Patch) -> float:
    def there_and_back() -> None:
        apply_patch(backbone.arena, patch)
        restore_patch(backbone.arena, patch)

    return _best_seconds(backbone, there_and_back)


def _best_seconds(backbone: Backbone, call: Callable[[], object], repeats: int = REPEATS) -> float:
    """The shortest of several runs of a call, with the GPU's work done; of a long one there is one run."""
    best = math.inf
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        if backbone.device.type == "cuda":
            torch.cuda.synchronize(backbone.device)
        best = min(best, time.perf_counter() - start)
        if best > LONG:
            break
    return best


def _random_patch(backbone: Backbone, targets: TargetModules, share: float) -> Patch:
    """A patch with entries all over what can be mixed (or, where nothing can, all over the arena), of value 0."""
    generator = torch.Generator().manual_seed(0)
    slots = {
        slot: name for name, slot in backbone.arena.slots.items() if slot not in targets.others or not targets.uses
    }
    total = sum(slot.numel for slot in slots)
    density = min(DENSITY, MOST_ENTRIES / total) * share
    parts = {}
    for slot, name in slots.items():
        count = max(1, int(slot.numel * density))
        places = torch.randint(slot.numel, (count,), generator=generator).unique()
        parts[name] = ParameterDelta(slot.shape, places, torch.zeros(len(places)))
    return make_patch(backbone, Delta(parts, "add", "float32"))


def _rising(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """Points in the order of their tokens, the seconds never falling: where they do, that is noise."""
    risen: list[tuple[int, float]] = []
    for tokens, seconds in sorted(dict(points).items()):
        risen.append((tokens, max(seconds, risen[-1][1] if risen else 0.0)))
    return risen
