"""Plots of stability: one density's spread and changes, and a sweep of densities."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sparsehub.extras import require
from sparsehub.training.stability import Stability

_INK, _ACCENT, _PALE = "#1f2933", "#c2410c", "#94a3b8"


def _figure(columns: int) -> tuple[Any, list[Any]]:
    require("matplotlib", "plot")
    from matplotlib.figure import Figure  # no pyplot: nothing global, no display

    figure = Figure(figsize=(4.6 * columns, 3.4), layout="constrained")
    axes = [figure.add_subplot(1, columns, place + 1) for place in range(columns)]
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(axis="y", color="#e2e8f0", linewidth=0.8)
        ax.set_axisbelow(True)
    return figure, axes


def draw_stability(found: Stability, title: str, path: Path) -> None:
    """Test scores of the refits, and the changes of the loss beside the bound of Theorem 1."""
    figure, (left, right) = _figure(2)
    groups = [("all rows", (found.score,)), ("rows left out", found.scores), ("other seeds", found.seed_scores[1:])]
    groups = [(name, scores) for name, scores in groups if scores]
    for place, (_, scores) in enumerate(groups):
        left.scatter([place] * len(scores), scores, color=_ACCENT if place else _INK, s=28, alpha=0.8)
    left.set_xticks(range(len(groups)), [name for name, _ in groups])
    left.set_xlim(-0.5, len(groups) - 0.5)
    left.set_ylabel("test score")
    bars = {"rows left out": found.removed, "one row left out": found.one_out, "Theorem 1": found.bound}
    shown = {name: value for name, value in bars.items() if value}
    colours = [_PALE if name == "Theorem 1" else _ACCENT for name in shown]
    right.bar(list(shown), list(shown.values()), color=colours, width=0.5)
    right.set_yscale("log")
    right.set_ylabel("change of the loss on those rows")
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=150)


def draw_sweep(found: Sequence[Stability], title: str, path: Path) -> None:
    """Score, change of the loss and generalisation gap against density, as in Figure 5 of the paper."""
    figure, (left, middle, right) = _figure(3)
    densities = [point.density for point in found]
    means = [sum(p.scores or (p.score,)) / len(p.scores or (p.score,)) for p in found]
    left.errorbar(densities, means, yerr=[p.spread for p in found], color=_ACCENT, marker="o", ms=4, capsize=3)
    left.set_ylabel("test score (mean, deviation)")
    for values, name, colour in (
        ([p.removed for p in found], "rows left out", _ACCENT),
        ([p.one_out for p in found], "one row left out", _INK),
        ([p.bound for p in found], "bound of Theorem 1", _PALE),
    ):
        points = [(x, y) for x, y in zip(densities, values, strict=True) if y]
        if points:
            middle.plot(*zip(*points, strict=True), marker="o", ms=4, color=colour, label=name)
    middle.set_yscale("log")
    middle.set_ylabel("change of the loss on those rows")
    middle.legend(frameon=False, fontsize=8)
    right.plot(densities, [p.gap for p in found], marker="o", ms=4, color=_ACCENT)
    right.set_ylabel("test loss - training loss")
    for ax in (left, middle, right):
        ax.set_xscale("log")
        ax.set_xlabel("density")
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=150)
