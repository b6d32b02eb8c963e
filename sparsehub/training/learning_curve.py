"""How a run went, as its package says it: losses and scores by epoch, from what transformers' Trainer has logged."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sparsehub.package.results import MAX_POINTS, LearningCurve, Points


def learning_curve(state: Any, metric: str) -> LearningCurve | None:
    """The curve that a package keeps; None where nothing was trained.

    state: of the Trainer. metric: the one that chose the epoch.
    """
    log: Sequence[Mapping[str, Any]] = state.log_history
    found = LearningCurve(
        training_loss=_points(log, "loss"),
        validation_loss=_points(log, "eval_loss"),
        metric=metric,
        scores=_points(log, f"eval_{metric}"),
        kept=_epoch_of(log, getattr(state, "best_global_step", None)),
    )
    return found if found.training_loss or found.scores else None


def _points(log: Sequence[Mapping[str, Any]], name: str) -> Points:
    """(epoch, value), `MAX_POINTS` of them at most; a number that is none was of a run that diverged."""
    found = [(round(float(entry["epoch"]), 4), round(float(entry[name]), 6)) for entry in log if name in entry]
    return thinned([point for point in found if math.isfinite(point[1])])


def thinned(points: Sequence[tuple[float, ...]]) -> Points:
    """At most `MAX_POINTS` points, evenly spaced, the first and the last among them."""
    if len(points) <= MAX_POINTS:
        return tuple(points)
    last = len(points) - 1
    return tuple(points[round(i * last / (MAX_POINTS - 1))] for i in range(MAX_POINTS))


def _epoch_of(log: Sequence[Mapping[str, Any]], step: int | None) -> float | None:
    """The epoch in which a step ended; None where nobody chose one."""
    return next((round(float(entry["epoch"]), 4) for entry in log if step and entry.get("step") == step), None)
