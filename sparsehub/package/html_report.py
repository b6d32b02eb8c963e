"""The HTML report of a package: what `sparsehub inspect --html` writes, one page without scripts or links elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sparsehub.package.card import SHOWN_LABELS, shown_scores
from sparsehub.package.delta_stats import Cell, HeatMap, Histogram
from sparsehub.package.describe import thresholds_text
from sparsehub.package.html_charts import curve_charts, prediction_chart
from sparsehub.package.rendering import render_html
from sparsehub.package.summary import PackageSummary
from sparsehub.package.units import percent

# Of the highest density: up to here text has a contrast of 4.5, white on a dark page and black on a light one.
_WHITE_ON_DARK, _BLACK_ON_LIGHT = 0.58, 0.6775
_CHART = (640, 180)  # pixels: width and height of the histogram
_WIDEST_BAR = 220  # pixels


@dataclass(frozen=True)
class HeatCell:
    """A coloured cell of the heat map."""

    style: str  # CSS
    title: str  # shown where the pointer rests on it
    text: str


@dataclass(frozen=True)
class OutsideRow:
    """A parameter in no layer, with a bar for its density."""

    name: str
    nnz: int
    density: float
    width: int  # of the bar, in pixels


@dataclass(frozen=True)
class ChartBar:
    """One bar of the histogram; lengths in pixels, with one decimal."""

    x: str
    y: str
    width: str
    height: str
    count: int


@dataclass(frozen=True)
class ChartMark:
    """A number below the histogram."""

    x: float  # pixels
    value: float
    anchor: str  # which part of the text stands at x: SVG's `text-anchor`


@dataclass(frozen=True)
class Chart:
    """The histogram as an SVG drawing."""

    width: int
    height: int
    bars: Sequence[ChartBar]
    marks: Sequence[ChartMark]


def render_report(package: PackageSummary, spread: Histogram | None) -> str:
    """The page. spread: of the delta's values, None where there is no delta. What came from the package is escaped."""
    values = {
        "package": package,
        "shown_labels": SHOWN_LABELS,
        "thresholds": thresholds_text(package.task, SHOWN_LABELS),
        "heat": _heat(package.changes.heat_map),
        "outside": _outside(package.changes.heat_map),
        "spread": spread,
        "chart": _chart(spread) if spread is not None else None,
        "scores": shown_scores(package.results),
        "charts": [] if package.learning_curve is None else curve_charts(package.learning_curve, package.starts),
        **_right_and_wrong(package),
    }
    return render_html("report.html.j2", values)


def _right_and_wrong(package: PackageSummary) -> dict[str, object]:
    """The confusion matrix by label, and the predictions of a regression, where the package has them."""
    results = package.results
    if results is None:
        return {"confusion": {}, "predictions": None}
    rows = zip(package.task.labels, results.confusion, strict=False)
    return {
        "confusion": {label: [_count_cell(count, sum(row)) for count in row] for label, row in rows},
        "predictions": prediction_chart(results.predicted) if results.predicted else None,
    }


def _count_cell(count: int, rows: int) -> HeatCell:
    """A cell of the confusion matrix, shaded by its share of the label's rows."""
    part = count / rows if rows else 0.0
    return HeatCell(_shade(part) if count else "", f"{percent(part)} of {rows:,}", f"{count:,}" if count else "")


def _heat(found: HeatMap) -> dict[str, list[HeatCell | None]]:
    """The cells of each layer, in the order of the kinds; None where the delta touches no such parameter."""
    highest = max((cell.density for cell in found.cells.values()), default=0.0)
    return {
        layer: [_heat_cell(found.cells.get((layer, kind)), highest) for kind in found.kinds] for layer in found.layers
    }


def _heat_cell(cell: Cell | None, highest: float) -> HeatCell | None:
    if cell is None:
        return None
    part = cell.density / highest if highest else 0.0
    return HeatCell(_shade(part), f"{cell.nnz:,} of {cell.numel:,}", percent(cell.density))


def _shade(part: float) -> str:
    """The CSS of a cell: the page's own colour at 0, the strongest one at 1, on a light page as on a dark one."""
    ink = "var(--faint)" if part <= _WHITE_ON_DARK else "#000" if part <= _BLACK_ON_LIGHT else "var(--strong)"
    return f"background:rgb(var(--heat)/{part:.3f});color:{ink}"


def _outside(found: HeatMap) -> list[OutsideRow]:
    highest = max((cell.density for cell in found.outside.values()), default=0.0) or 1.0
    return [
        OutsideRow(name, cell.nnz, cell.density, round(_WIDEST_BAR * cell.density / highest))
        for name, cell in found.outside.items()
    ]


def _chart(spread: Histogram) -> Chart:
    (width, height), top = _CHART, max(spread.counts)
    step = width / len(spread.counts)
    bars = [
        ChartBar(
            x=f"{number * step:.1f}",
            y=f"{height - height * count / top:.1f}",
            width=f"{step - 1:.1f}",
            height=f"{height * count / top:.1f}",
            count=count,
        )
        for number, count in enumerate(spread.counts)
    ]
    left, middle, right = (spread.edges[0], "start"), (0.0, "middle"), (spread.edges[-1], "end")
    marks = [
        ChartMark(x, value, anchor)
        for x, (value, anchor) in zip((0, width / 2, width), (left, middle, right), strict=True)
    ]
    return Chart(width, height, bars, marks)
