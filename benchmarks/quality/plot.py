"""The plot of `benchmarks.quality`: a column a task, a line a method, every seed a dot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.quality.table import Results, columns_of, rows_of

_INK, _ACCENT = "#1f2933", "#c2410c"


def draw(results: Results, path: Path) -> None:
    """Nothing is drawn where nothing was run."""
    from matplotlib.figure import Figure

    columns, methods = columns_of(results), rows_of(results)[::-1]
    if not columns:
        return
    figure = Figure(figsize=(2.2 + 2.6 * len(columns), 1.2 + 0.28 * len(methods)), layout="constrained")
    axes = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    for ax, column in zip(axes, columns, strict=True):
        _draw_task(ax, results, column, methods)
    axes[0].set_yticks(range(len(methods)), methods)
    axes[0].set_ylim(-0.6, len(methods) - 0.4)
    figure.supxlabel("test score; a dot a seed, a bar their mean", fontsize=9)
    figure.savefig(path, dpi=130)


def _draw_task(ax: Any, results: Results, column: tuple[str, str], methods: list[str]) -> None:
    for place, method in enumerate(methods):
        result = results.get((method, column))
        if result is None:
            continue
        colour = _ACCENT if method.startswith("sam") else _INK
        ax.scatter(result.scores, [place] * len(result.scores), s=18, color=colour, alpha=0.75, linewidths=0)
        ax.plot([result.mean] * 2, [place - 0.3, place + 0.3], color=colour, linewidth=1.6)
    majority = next(result.runs[0]["majority"] for (_, where), result in results.items() if where == column)
    ax.set_title(f"{column[1]} (majority {majority:.2f})", fontsize=10)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="x", color="#e2e8f0", linewidth=0.8)
    ax.set_axisbelow(True)
