"""The charts of a card, a console and `sparsehub compare`, by matplotlib."""

from __future__ import annotations

import io
from typing import Any

from sparsehub.deltafile import StoredDelta
from sparsehub.package.card import DENSITY_PICTURE, VALUES_PICTURE
from sparsehub.package.delta_stats import HeatMap, Histogram, histogram
from sparsehub.package.summary import PackageSummary
from sparsehub.package.units import percent

_DPI = 100
_COLOURS = 64
_INK, _BAR = "#202124", "#1f6f8b"
_CELL = 0.42  # inches
_MAX_LAYERS = 64  # rows of a heat map that are drawn: more would not fit on a page


def draw_pictures(package: PackageSummary, delta: StoredDelta | None) -> dict[str, bytes]:
    """The pictures of a package's card, as PNG bytes by file name.

    Empty where matplotlib is not installed or nothing changes; without the histogram of the values where no delta is
    given.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: F401 - no window, whatever the machine
    except ImportError:
        return {}
    if not package.changes.nnz:
        return {}
    pictures = {DENSITY_PICTURE: _density(package)}
    if delta is not None:
        pictures[VALUES_PICTURE] = _values(histogram(delta), package)
    return pictures


def _density(package: PackageSummary) -> bytes:
    map_ = package.changes.heat_map
    layers = map_.layers[:_MAX_LAYERS]
    outside = list(map_.outside.items())[:16]
    width, height = 2.6 + _CELL * 1.7 * len(map_.kinds), 1.9 + _CELL * max(len(layers), 2)
    below = 0.6 + 0.28 * len(outside) if outside else 0.0
    figure, (top, bottom) = _figure((max(width, 6.0), height + below), [height, below or 0.01])
    top.set_title(f"{package.name} {package.version}: share of entries changed", loc="left", fontsize=11)
    _draw_cells(top, map_, layers)
    if outside:
        _draw_outside(bottom, outside)
    else:
        bottom.set_visible(False)
    return _png(figure)


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
    highest = float(np.nanmax(grid))
    axes.imshow(grid, cmap="YlGnBu", vmin=0, vmax=highest, aspect="auto")
    axes.set_xticks(range(len(map_.kinds)), map_.kinds, rotation=30, ha="right", fontsize=8)
    axes.set_yticks(range(len(layers)), layers, fontsize=8)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    for (i, j), value in np.ndenumerate(grid):
        if not np.isnan(value):
            colour = "white" if value > 0.6 * highest else _INK
            axes.text(j, i, percent(float(value)), ha="center", va="center", fontsize=7, color=colour)


def _draw_outside(axes: Any, outside: list[Any]) -> None:
    names = [name for name, _ in outside][::-1]
    shares = [100 * cell.density for _, cell in outside][::-1]
    axes.barh(range(len(names)), shares, color=_BAR, height=0.6)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_title("outside the layers", loc="left", fontsize=9)
    axes.set_xlim(0, 1.2 * max(shares) or 1)
    for place, share in enumerate(shares):
        axes.text(share, place, f" {percent(share / 100)}", va="center", fontsize=7, color=_INK)
    axes.set_xticks([])
    axes.tick_params(length=0)
    for side in ("top", "right", "bottom"):
        axes.spines[side].set_visible(False)


def _values(spread: Histogram, package: PackageSummary) -> bytes:
    figure, (axes, hidden) = _figure((6.4, 3.2), [3.2, 0.01])
    hidden.set_visible(False)
    edges = spread.edges
    axes.bar(edges[:-1], spread.counts, width=edges[1] - edges[0], align="edge", color=_BAR, edgecolor="white", lw=0.4)
    what = "added to" if package.changes.value_kind == "add" else "put in place of"
    axes.set_title(f"{package.changes.nnz:,} values {what} the weights", loc="left", fontsize=11)
    note = f"mean size {spread.mean_size:.2g}, largest {spread.largest:.2g}"
    axes.set_xlabel(f"value ({note}; {spread.beyond:,} lie beyond this range)", fontsize=8)
    axes.set_ylabel("entries", fontsize=8)
    axes.tick_params(labelsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return _png(figure)


def draw_matrices(names: list[str], matrices: dict[str, list[list[float]]]) -> bytes:
    """A PNG of square matrices of shares side by side, by title, such as `PackageComparison.matrices`.

    names: of rows and columns. The shades always go from 0 to 1, so that two pictures can be compared; the diagonals
    are left white.
    """
    import numpy as np
    from matplotlib.figure import Figure

    size = 1.9 + 0.62 * len(names)
    figure = Figure(figsize=(size * len(matrices) + 0.4, size), dpi=_DPI, layout="constrained")
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
                colour = "white" if value > 0.6 else _INK
                axes.text(j, i, percent(float(value)), ha="center", va="center", fontsize=8, color=colour)
    return _png(figure)


def _figure(size: tuple[float, float], heights: list[float]) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=_DPI, layout="constrained")
    return figure, figure.subplots(2, 1, gridspec_kw={"height_ratios": heights})


def _png(figure: Any) -> bytes:
    """The PNG's bytes, with a palette: a package of half a megabyte should not be mostly picture."""
    from PIL import Image  # a dependency of matplotlib

    drawn, small = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png")
    Image.open(drawn).convert("RGB").quantize(_COLOURS, dither=Image.Dither.NONE).save(small, "PNG", optimize=True)
    return small.getvalue()
