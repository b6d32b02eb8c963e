"""What the pictures of a card have in common: colours, and the way to a small PNG, by matplotlib."""

from __future__ import annotations

import io
import warnings
from typing import Any

DPI = 100
COLOURS, FEW = 64, 16  # of a palette; lines, dots and few cells need no more
INK, DIM, BAR, SECOND = "#202124", "#7a858c", "#1f6f8b", "#c7702e"


def new_figure(size: tuple[float, float]) -> Any:
    """A figure of matplotlib for no window, whatever the machine. size: inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=size, dpi=DPI, layout="constrained")


def png_of(figure: Any, colours: int = COLOURS) -> bytes:
    """The PNG's bytes, with a palette: a package of half a megabyte should not be mostly picture."""
    from PIL import Image  # a dependency of matplotlib

    drawn, small = io.BytesIO(), io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a label may have a letter that no font here has
        figure.savefig(drawn, format="png")
    Image.open(drawn).convert("RGB").quantize(colours, dither=Image.Dither.NONE).save(small, "PNG", optimize=True)
    return small.getvalue()


def plain_axes(axes: Any) -> None:
    """Two lines less, and small numbers."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.tick_params(labelsize=8)


def draw_shares(axes: Any, grid: Any, texts: list[list[str]], highest: float) -> None:
    """A heat map of shares, 0 to `highest`. grid: [rows, columns], NaN where there is none; texts: of its cells."""
    import numpy as np

    axes.imshow(grid, cmap="YlGnBu", vmin=0, vmax=highest, aspect="auto")
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    for (i, j), value in np.ndenumerate(grid):
        if not np.isnan(value):
            colour = "white" if value > 0.6 * highest else INK
            axes.text(j, i, texts[i][j], ha="center", va="center", fontsize=7, color=colour)
