"""The charts of a card, a console and `sparsehub compare`, by matplotlib."""

from __future__ import annotations

from typing import Any

from sparsehub.deltafile import StoredDelta
from sparsehub.package.card import (
    CONFUSION_PICTURE,
    CURVE_PICTURE,
    DENSITY_PICTURE,
    PREDICTIONS_PICTURE,
    VALUES_PICTURE,
)
from sparsehub.package.delta_stats import HeatMap, Histogram, histogram
from sparsehub.package.drawing import BAR, INK, draw_shares, new_figure, plain_axes, png_of
from sparsehub.package.result_plots import draw_confusion, draw_curve, draw_predictions
from sparsehub.package.summary import PackageSummary
from sparsehub.package.units import percent

_CELL = 0.42  # inches
_MAX_LAYERS = 64  # rows of a heat map that are drawn: more would not fit on a page


def draw_pictures(package: PackageSummary, delta: StoredDelta | None) -> dict[str, bytes]:
    """The pictures of a package's card, as PNG bytes by file name.

    Empty where matplotlib is not installed. Where nothing changes, without what shows a change; without the histogram
    of the values where no delta is given.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: F401 - no window, whatever the machine
    except ImportError:
        return {}
    pictures = _results(package)
    if package.changes.nnz:
        pictures[DENSITY_PICTURE] = draw_density(package)
        if delta is not None:
            pictures[VALUES_PICTURE] = _values(histogram(delta), package)
    return pictures


def _results(package: PackageSummary) -> dict[str, bytes]:
    """How the run went, and where the task is right, as far as the package says it."""
    pictures = {}
    if package.learning_curve is not None:
        pictures[CURVE_PICTURE] = draw_curve(package.learning_curve, package.starts)
    if package.results is not None and package.results.confusion:
        pictures[CONFUSION_PICTURE] = draw_confusion(package.results, package.task.labels)
    if package.results is not None and package.results.predicted:
        pictures[PREDICTIONS_PICTURE] = draw_predictions(package.results)
    return pictures


def draw_density(package: PackageSummary) -> bytes:
    """A PNG of the share of entries that change, by layer and kind of matrix, and outside the layers."""
    map_ = package.changes.heat_map
    layers = map_.layers[:_MAX_LAYERS]
    outside = list(map_.outside.items())[:16]
    width, height = 2.6 + _CELL * 1.7 * len(map_.kinds), 1.9 + _CELL * max(len(layers), 2)
    below = 0.6 + 0.28 * len(outside) if outside else 0.0
    figure = new_figure((max(width, 6.0), height + below))
    top, bottom = figure.subplots(2, 1, gridspec_kw={"height_ratios": [height, below or 0.01]})
    top.set_title(f"{package.name} {package.version}: share of entries changed", loc="left", fontsize=11)
    _draw_cells(top, map_, layers)
    if outside:
        _draw_outside(bottom, outside)
    else:
        bottom.set_visible(False)
    return png_of(figure)


def _draw_cells(axes: Any, map_: HeatMap, layers: tuple[str, ...]) -> None:
    import numpy as np

    grid = np.full((len(layers), len(map_.kinds)), np.nan)
    for i, layer in enumerate(layers):
        for j, kind in enumerate(map_.kinds):
            if (cell := map_.cells.get((layer, kind))) is not None:
                grid[i, j] = cell.density
    if not grid.size:
        axes.axis("off")
        return
    texts = [["" if np.isnan(value) else percent(value) for value in row] for row in grid.tolist()]
    draw_shares(axes, grid, texts, float(np.nanmax(grid)))
    axes.set_xticks(range(len(map_.kinds)), map_.kinds, rotation=30, ha="right", fontsize=8)
    axes.set_yticks(range(len(layers)), layers, fontsize=8)


def _draw_outside(axes: Any, outside: list[Any]) -> None:
    names = [name for name, _ in outside][::-1]
    shares = [100 * cell.density for _, cell in outside][::-1]
    axes.barh(range(len(names)), shares, color=BAR, height=0.6)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_title("outside the layers", loc="left", fontsize=9)
    axes.set_xlim(0, 1.2 * max(shares) or 1)
    for place, share in enumerate(shares):
        axes.text(share, place, f" {percent(share / 100)}", va="center", fontsize=7, color=INK)
    axes.set_xticks([])
    axes.tick_params(length=0)
    for side in ("top", "right", "bottom"):
        axes.spines[side].set_visible(False)


def _values(spread: Histogram, package: PackageSummary) -> bytes:
    figure = new_figure((6.4, 3.2))
    axes = figure.subplots()
    edges = spread.edges
    axes.bar(edges[:-1], spread.counts, width=edges[1] - edges[0], align="edge", color=BAR, edgecolor="white", lw=0.4)
    what = "added to" if package.changes.value_kind == "add" else "put in place of"
    axes.set_title(f"{package.changes.nnz:,} values {what} the weights", loc="left", fontsize=11)
    note = f"mean size {spread.mean_size:.2g}, largest {spread.largest:.2g}"
    axes.set_xlabel(f"value ({note}; {spread.beyond:,} lie beyond this range)", fontsize=8)
    axes.set_ylabel("entries", fontsize=8)
    plain_axes(axes)
    return png_of(figure)


def draw_matrices(names: list[str], matrices: dict[str, list[list[float]]]) -> bytes:
    """A PNG of square matrices of shares side by side, by title, such as `PackageComparison.matrices`.

    names: of rows and columns. The shades always go from 0 to 1, so that two pictures can be compared; the diagonals
    are left white.
    """
    import numpy as np

    size = 1.9 + 0.62 * len(names)
    figure = new_figure((size * len(matrices) + 0.4, size))
    for axes, (title, matrix) in zip(np.atleast_1d(figure.subplots(1, len(matrices))), matrices.items(), strict=True):
        grid = np.array(matrix, dtype=float)
        np.fill_diagonal(grid, np.nan)
        axes.imshow(grid, cmap="YlGnBu", vmin=0, vmax=1)
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_xticks(range(len(names)), names, rotation=40, ha="right", fontsize=8)
        axes.set_yticks(range(len(names)), names, fontsize=8)
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
        for (i, j), value in np.ndenumerate(grid):
            if i != j:
                colour = "white" if value > 0.6 else INK
                axes.text(j, i, percent(float(value)), ha="center", va="center", fontsize=8, color=colour)
    return png_of(figure)
