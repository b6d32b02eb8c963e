"""Plots of stability: one density's spread and changes, and a sweep of densities."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sparsehub.extras import require
from sparsehub.training.stability import Stability

_INK, _ACCENT, _PALE = "#1f2933", "#c2410c", "#94a3b8"


def _figure(columns: int) -> tuple[Any, list[Any]]:
    require("matplotlib", "train")
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
    changes = {"rows left out": found.removed, "one row left out": found.one_out, "Theorem 1": found.bound}
    _draw_changes(right, {name: value for name, value in changes.items() if value})
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=150)


def _draw_changes(ax: Any, changes: Mapping[str, float]) -> None:
    """Dots with their values on whole decades: a bar on a logarithmic axis would have no honest length."""
    for place, (name, value) in enumerate(changes.items()):
        ax.scatter(place, value, color=_PALE if name == "Theorem 1" else _ACCENT, s=48)
        ax.annotate(f"{value:.3g}", (place, value), xytext=(8, 0), textcoords="offset points", va="center", fontsize=9)
    ax.set_xticks(range(len(changes)), list(changes))
    ax.set_xlim(-0.5, len(changes) - 0.3)
    _decades(ax, list(changes.values()))
    ax.set_ylabel("change of the loss on those rows")


def _decades(ax: Any, values: Sequence[float]) -> None:
    """A logarithmic y axis from the decade below the least value to the one above the greatest."""
    ax.set_yscale("log")
    if values:
        ax.set_ylim(10 ** math.floor(math.log10(min(values))), 10 ** math.ceil(math.log10(max(values)) + 0.02))
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_formatter("")


def draw_sweep(found: Sequence[Stability], title: str, path: Path) -> None:
    """Score, change of the loss and generalisation gap against density, as in Figure 5 of the paper."""
    figure, (left, middle, right) = _figure(3)
    densities = [point.density for point in found]
    means = [sum(p.scores or (p.score,)) / len(p.scores or (p.score,)) for p in found]
    left.errorbar(densities, means, yerr=[p.spread for p in found], color=_ACCENT, marker="o", ms=4, capsize=3)
    left.set_ylabel("test score (mean, deviation)")
    shown: list[float] = []
    for values, name, colour in (
        ([p.removed for p in found], "rows left out", _ACCENT),
        ([p.one_out for p in found], "one row left out", _INK),
        ([p.bound for p in found], "bound of Theorem 1", _PALE),
    ):
        points = [(x, y) for x, y in zip(densities, values, strict=True) if y]
        if points:
            middle.plot(*zip(*points, strict=True), marker="o", ms=4, color=colour, label=name)
            shown += [y for _, y in points]
    _decades(middle, shown)
    middle.set_ylabel("change of the loss on those rows")
    if shown:
        middle.legend(frameon=False, fontsize=8)
    right.plot(densities, [p.gap for p in found], marker="o", ms=4, color=_ACCENT)
    right.set_ylabel("test loss - training loss")
    for ax in (left, middle, right):
        ax.set_xscale("log")
        ax.set_xticks(densities, [f"{100 * density:.2g}%" for density in densities])
        ax.minorticks_off()
        ax.set_xlabel("share of the entries that may change")
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=150)
