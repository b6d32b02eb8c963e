"""Charts of the HTML report as numbers for SVG: lines by epoch, predictions against what is true. Lengths in pixels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sparsehub.package.results import LearningCurve, Points

_SIZE = (400, 170)  # width and height of the area that is drawn in
_SQUARE = (260, 260)
_DOTS = 30  # points of a line that get a dot each
BAR, DIM, SECOND = "var(--bar)", "var(--dim)", "var(--second)"


@dataclass(frozen=True)
class ChartLine:
    """One line, or where `path` is empty only dots."""

    name: str
    colour: str  # CSS
    path: str  # x,y x,y ...
    dots: tuple[tuple[str, str], ...]
    dashed: bool = False


@dataclass(frozen=True)
class Tick:
    """A number at an axis."""

    x: float
    y: float
    text: str
    anchor: str  # which part of the text stands at x: SVG's `text-anchor`


@dataclass(frozen=True)
class LineChart:
    """A chart with its legend: the names and colours of its lines."""

    title: str
    width: int
    height: int
    lines: tuple[ChartLine, ...]
    ticks: tuple[Tick, ...]


@dataclass(frozen=True)
class _Area:
    """Where numbers lie in a chart."""

    size: tuple[int, int]
    x: tuple[float, float]  # least and largest number
    y: tuple[float, float]

    def place(self, x: float, y: float) -> tuple[str, str]:
        (width, height), across, up = self.size, self.x[1] - self.x[0], self.y[1] - self.y[0]
        return f"{width * (x - self.x[0]) / across:.1f}", f"{height * (self.y[1] - y) / up:.1f}"

    def line(self, name: str, points: Points, colour: str) -> ChartLine:
        places = [self.place(x, y) for x, y in points]
        return ChartLine(name, colour, " ".join(map(",".join, places)), tuple(places) if len(places) < _DOTS else ())

    def level(self, name: str, value: float) -> ChartLine:
        path = " ".join(",".join(self.place(x, value)) for x in self.x)
        return ChartLine(f"{name} {value:.3f}", SECOND, path, (), dashed=True)

    def ticks(self) -> tuple[Tick, ...]:
        width, height = self.size
        sides = [Tick(-6, y, f"{value:.3g}", "end") for y, value in ((10, self.y[1]), (height, self.y[0]))]
        below = [
            Tick(x, height + 16, f"{value:.3g}", a)
            for x, value, a in ((0, self.x[0], "start"), (width, self.x[1], "end"))
        ]
        return (*sides, *below)


def curve_charts(curve: LearningCurve, starts: Mapping[str, float]) -> list[LineChart]:
    """Losses, and the score beside the baselines `starts`, by epoch; those of them of which there are numbers."""
    losses = {"training": (curve.training_loss, DIM), "validation": (curve.validation_loss, BAR)}
    scores = {"by epoch": (curve.scores, BAR)}
    charts = [_chart("loss by epoch", losses, {}), _chart(f"{curve.metric} by epoch, validation", scores, starts)]
    return [chart for chart in charts if chart.lines]


def _chart(title: str, series: Mapping[str, tuple[Points, str]], levels: Mapping[str, float]) -> LineChart:
    drawn = {name: line for name, line in series.items() if line[0]}
    if not drawn:
        return LineChart(title, *_SIZE, (), ())
    points = [point for line, _ in drawn.values() for point in line]
    area = _Area(_SIZE, _range([x for x, _ in points]), _range([*(y for _, y in points), *levels.values()]))
    lines = [area.line(name, line, colour) for name, (line, colour) in drawn.items()]
    return LineChart(title, *_SIZE, (*lines, *(area.level(*level) for level in levels.items())), area.ticks())


def prediction_chart(points: Points) -> LineChart:
    """Dots of a regression's predictions over what the rows are, and the line on which both are equal."""
    ends = _range([number for point in points for number in point])
    area = _Area(_SQUARE, ends, ends)
    dots = tuple(area.place(true, given) for true, given in points)
    equal = ChartLine("equal", SECOND, " ".join(",".join(area.place(end, end)) for end in ends), (), dashed=True)
    return LineChart("predicted (up) against true", *_SQUARE, (equal, ChartLine("rows", BAR, "", dots)), area.ticks())


def _range(numbers: list[float]) -> tuple[float, float]:
    """From the least number to the largest; where they are one, a little around it."""
    low, high = min(numbers), max(numbers)
    return (low, high) if high > low else (low - 0.5, high + 0.5)
