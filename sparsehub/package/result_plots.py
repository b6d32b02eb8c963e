"""The pictures of how a task was trained and where it is right: learning curve, confusion matrix, predictions."""

from __future__ import annotations

from typing import Any

from sparsehub.package.drawing import BAR, DIM, FEW, INK, SECOND, draw_shares, new_figure, plain_axes, png_of
from sparsehub.package.results import LearningCurve, Points, SplitResults

_CELL = 0.5  # inches of a cell of a confusion matrix


def draw_curve(curve: LearningCurve, starts: dict[str, float]) -> bytes:
    """A PNG of losses and of the score by epoch. starts: scores of baselines on the same rows, by name."""
    figure = new_figure((9.0, 3.2) if curve.scores else (5.0, 3.2))
    axes = figure.subplots(1, 2 if curve.scores else 1, squeeze=False)[0]
    _draw_losses(axes[0], curve)
    if curve.scores:
        _draw_scores(axes[1], curve, starts)
    return png_of(figure, FEW)


def _draw_losses(axes: Any, curve: LearningCurve) -> None:
    axes.set_title("loss", loc="left", fontsize=11)
    _line(axes, curve.training_loss, DIM, "training")
    _line(axes, curve.validation_loss, BAR, "validation")
    _finish(axes, curve)


def _draw_scores(axes: Any, curve: LearningCurve, starts: dict[str, float]) -> None:
    axes.set_title(f"{curve.metric}, validation", loc="left", fontsize=11, parse_math=False)
    _line(axes, curve.scores, BAR, "by epoch")
    for style, (name, score) in zip(("--", ":"), starts.items(), strict=False):
        axes.axhline(score, color=SECOND, linestyle=style, linewidth=1.2, label=f"{name} {score:.3f}")
    _finish(axes, curve)


def _line(axes: Any, points: Points, colour: str, label: str) -> None:
    if points:
        epochs, values = zip(*points, strict=True)
        axes.plot(
            epochs, values, color=colour, linewidth=1.6, marker="o" if len(points) < 30 else "", ms=3.5, label=label
        )


def _finish(axes: Any, curve: LearningCurve) -> None:
    if curve.kept is not None:
        axes.axvline(curve.kept, color=INK, linewidth=0.8, alpha=0.4, label=f"kept: epoch {curve.kept:g}")
    axes.set_xlabel("epoch", fontsize=8)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(fontsize=7, frameon=False)
    plain_axes(axes)


def draw_confusion(results: SplitResults, labels: tuple[str, ...]) -> bytes:
    """A PNG of a confusion matrix: rows in each cell, shaded by their share of the label's rows."""
    import numpy as np

    counts = np.array(results.confusion, dtype=float)
    shares = np.where(counts > 0, counts / np.maximum(counts.sum(1, keepdims=True), 1), np.nan)
    texts = [[f"{count:,}" if count else "" for count in row] for row in results.confusion]
    side = _CELL * len(labels)
    names = [name if len(name) <= 24 else name[:23] + "\N{HORIZONTAL ELLIPSIS}" for name in labels]
    room = 0.075 * max(map(len, names))
    figure = new_figure((max(side + room + 0.8, 4.0), max(side + 0.7 * room + 1.1, 2.6)))
    axes = figure.subplots()
    axes.set_title(f"{results.split}: rows by label and answer", loc="left", fontsize=11, parse_math=False)
    draw_shares(axes, shares, texts, 1.0)
    places, style = range(len(names)), {"fontsize": 8, "parse_math": False}  # a label may have a dollar sign
    axes.set_xticks(places, names, rotation=40, ha="right", rotation_mode="anchor", **style)
    axes.set_yticks(places, names, **style)
    axes.set_xlabel("answer", fontsize=8)
    axes.set_ylabel("label", fontsize=8)
    return png_of(figure, FEW)


def draw_predictions(results: SplitResults) -> bytes:
    """A PNG of a regression's predictions against what the rows are, with the line on which both are equal."""
    figure = new_figure((4.4, 4.0))
    axes = figure.subplots()
    expected, given = zip(*results.predicted, strict=True)
    low, high = min(*expected, *given), max(*expected, *given)
    axes.plot((low, high), (low, high), color=SECOND, linestyle="--", linewidth=1.2, label="equal")
    axes.scatter(expected, given, s=14, color=BAR, alpha=0.6, linewidths=0)
    axes.set_title(f"{results.split}: predicted against true", loc="left", fontsize=11, parse_math=False)
    axes.set_xlabel("true", fontsize=8)
    axes.set_ylabel("predicted", fontsize=8)
    axes.legend(fontsize=7, frameon=False)
    plain_axes(axes)
    return png_of(figure, FEW)
