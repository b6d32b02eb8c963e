"""The pictures of README.md and of the docs: plots of what `benchmarks/results` holds, and a terminal.

`python -m benchmarks.pictures` draws the plots, `python -m benchmarks.pictures terminal` runs the terminal's commands
as well. A plot keeps the numbers that it was drawn from, and a test holds them to the results.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness import RESULTS
from benchmarks.quality import layers
from benchmarks.quality.runs import lines
from benchmarks.quality.setup import METHODS
from benchmarks.quality.table import Result, complete_columns, results_of, rows_of

IMAGES = Path(__file__).parents[1] / "docs" / "images"
PACKAGE = Path(__file__).parents[1] / "examples" / "support" / "packages" / "topic" / "sparsehub.json"
THEMES = {
    "light": {"ink": "#1f2933", "pale": "#7b8794", "grid": "#d9dee4", "accent": "#0f766e"},
    "dark": {"ink": "#e6edf3", "pale": "#8b949e", "grid": "#30363d", "accent": "#2dd4bf"},
}
# Of the methods with a dot those that a stranger knows get their name: (name, label's place in points from the dot).
NAMED = {
    "sam": ("sparsehub (sam, 0.5%)", (5, 7), "left"),
    "random": ("random 0.5%", (-8, 2), "right"),
    "lora": ("LoRA, rank 8", (8, 1), "left"),
    "bitfit": ("BitFit", (8, -2), "left"),
    "full": ("full fine-tuning", (-9, -3), "right"),
    "mixout": ("mixout", (-9, -3), "right"),
}
LOWEST = "bare FastAPI, PEFT LoRA r=8, adapter_names"  # its name stands below its line
SERIES = {
    "endpoint": "sparsehub serve",
    LOWEST: "FastAPI and PEFT, LoRA rank 8",
    "bare FastAPI, one plain model": "FastAPI, one plain model",
}


@dataclass(frozen=True)
class Dot:
    """A method of the quality plot."""

    method: str
    megabytes: float  # stored a task, without the head
    score: float  # mean of the tasks, over all seeds
    least: float  # of the seeds
    most: float


def quality_dots() -> list[Dot]:
    """Every method that was run on all compared tasks, from `quality.jsonl`."""
    results = results_of(lines(RESULTS / "quality.jsonl"))
    columns = complete_columns(results)
    methods = [name for name in rows_of(results) if all((name, column) in results for column in columns)]
    return [_dot(name, [results[name, column] for column in columns]) for name in methods]


def _dot(method: str, cells: Sequence[Result]) -> Dot:
    seeds = [statistics.mean(scores) for scores in zip(*(cell.scores for cell in cells), strict=True)]
    dense = METHODS[method].whole and method in ("full", "mixout")
    stored = _backbone_bytes() if dense else max(run["bytes"] for cell in cells for run in cell.runs)
    return Dot(method, stored / 1e6, *(round(f(seeds), 4) for f in (statistics.mean, min, max)))


def _backbone_bytes() -> int:
    """Of all-MiniLM-L6-v2 in float32."""
    return int(json.loads(PACKAGE.read_text())["backbone"]["parameters"]) * 4


def throughput() -> dict[str, list[tuple[int, float]]]:
    """Items a second by number of tasks, for each server of `serve.jsonl`; of the newest run."""
    found = [json.loads(line) for line in (RESULTS / "serve.jsonl").read_text().splitlines()]
    newest = max(line["date"] for line in found)
    series: dict[str, list[tuple[int, float]]] = {name: [] for name in SERIES}
    for line in found:
        if line["date"] == newest and line["case"] in series and "tasks" in line["setup"]:
            series[line["case"]].append((line["setup"]["tasks"], round(line["measured"]["items a second"], 2)))
    return series


def draw_quality(dots: Sequence[Dot], theme: str) -> None:
    """Score by bytes a task; the bar of a dot reaches from the worst seed to the best."""
    colours = THEMES[theme]
    figure, axes = _axes(
        colours, "Quality against cost", "MB stored a task, beside one backbone", "mean score of five tasks"
    )
    for dot in dots:
        colour = colours["accent"] if dot.method == "sam" else colours["pale"]
        axes.plot([dot.megabytes] * 2, [dot.least, dot.most], color=colour, linewidth=1.4, alpha=0.6)
        axes.plot([dot.megabytes], [dot.score], "o", color=colour, markersize=6.5)
        if dot.method in NAMED:
            text, place, side = NAMED[dot.method]
            ink = colour if dot.method == "sam" else colours["ink"]
            axes.annotate(
                text, (dot.megabytes, dot.score), place, textcoords="offset points", ha=side, color=ink, fontsize=9
            )
    axes.set_xlim(0.03, 200)
    axes.set_ylim(0.52, 0.67)
    axes.set_xticks([0.1, 1, 10, 100], ["0.1", "1", "10", "100"])
    _save(figure, f"quality-{theme}", [asdict(dot) for dot in dots])


def draw_throughput(series: Mapping[str, Sequence[tuple[int, float]]], theme: str) -> None:
    """Items a second by tasks; what ran one task alone is one dot, with a line to compare with."""
    colours = THEMES[theme]
    figure, axes = _axes(colours, "Many tasks, one endpoint", "tasks served", "items a second, two CPU cores")
    for case, points in series.items():
        tasks, rates = zip(*points, strict=True)
        colour = colours["accent"] if case == "endpoint" else colours["pale"]
        axes.plot(tasks, rates, "o-", color=colour, markersize=6, linewidth=2)
        if len(points) == 1:
            axes.axhline(rates[0], color=colour, linewidth=1, linestyle=":")
        ink = colour if case == "endpoint" else colours["ink"]
        place = (0, -13 if case == LOWEST else 6)
        axes.annotate(
            SERIES[case], (300, rates[-1]), place, textcoords="offset points", ha="right", color=ink, fontsize=9
        )
    axes.set_xlim(0.8, 330)
    axes.set_ylim(0, 1.15 * max(rate for points in series.values() for _, rate in points))
    axes.set_xticks([1, 4, 16, 64, 256], ["1", "4", "16", "64", "256"])
    _save(figure, f"throughput-{theme}", {SERIES[case]: points for case, points in series.items()})


def layer_depths() -> list[layers.Depth]:
    """Probe, last layers and all of them, from `layers.jsonl` and `trunk.jsonl`."""
    return layers.depths(list(lines(layers.SCORES)), list(lines(layers.COSTS)))


def draw_layers(depths: Sequence[layers.Depth]) -> None:
    """Score by answers a second, of tasks that change more and more of the last layers; on white, for any page."""
    colours = THEMES["light"]
    figure, axes = _axes(
        colours, "Few layers or all", "answers a second, 16 tasks on the same texts", "mean score of four tasks"
    )
    figure.patch.set(facecolor="white", alpha=1)
    axes.plot([d.answers for d in depths], [d.mean for d in depths], "o-", color=colours["accent"], markersize=6.5)
    beside = {layers.PROBE: ("head alone (probe)", (4, -15), "right"), "last:3": ("last 3", (-4, -14), "right")}
    for depth in depths:
        name, place, side = beside.get(depth.layers, (depth.layers.replace(":", " "), (8, 4), "left"))
        axes.annotate(
            name,
            (depth.answers, depth.mean),
            place,
            textcoords="offset points",
            ha=side,
            color=colours["ink"],
            fontsize=9,
        )
    axes.set_xlim(200, 9000)
    low, high = min(d.mean for d in depths), max(d.mean for d in depths)
    axes.set_ylim(low - 0.2 * (high - low), high + 0.25 * (high - low))
    axes.set_xticks([300, 1000, 3000], ["300", "1,000", "3,000"])
    _save(figure, "layers", [asdict(depth) for depth in depths])


def _axes(colours: Mapping[str, str], title: str, across: str, up: str) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.0, 3.4), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.subplots()
    axes.patch.set_alpha(0)
    axes.set_xscale("log")
    axes.minorticks_off()
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=colours["ink"])
    axes.set_xlabel(across, fontsize=9, color=colours["ink"])
    axes.set_ylabel(up, fontsize=9, color=colours["ink"])
    axes.tick_params(colors=colours["ink"], labelsize=9)
    axes.grid(color=colours["grid"], linewidth=0.8)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(colours["pale"])
    return figure, axes


def _save(figure: Any, name: str, numbers: Any) -> None:
    """An SVG that is the same whenever its numbers are, and says them."""
    from matplotlib import rc_context

    with rc_context({"svg.hashsalt": name}):
        figure.savefig(
            IMAGES / f"{name}.svg",
            metadata={"Date": None, "Creator": None, "Description": json.dumps(numbers, separators=(",", ":"))},
        )


def main() -> None:
    for theme in THEMES:
        draw_quality(quality_dots(), theme)
        draw_throughput(throughput(), theme)
    draw_layers(layer_depths())
    if sys.argv[1:] == ["terminal"]:
        from benchmarks.terminal_picture import draw_terminal

        draw_terminal(IMAGES / "terminal.svg")


if __name__ == "__main__":
    main()
