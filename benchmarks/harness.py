"""Measure cases against each other where a shared machine makes every single timing wrong.

The cases run in turn, round after round, and every other round runs them backwards: a slow minute hits them all. What
counts is the median of each, and the ratios between them. Machines differ in these ratios too: a table keeps a section
for each kind of CPU, and a run replaces that of its own.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from sparsehub import __version__
from sparsehub.kernels import native_module

RESULTS = Path(__file__).parent / "results"
KEY = "key"  # of a setup: for programs, not shown
T = TypeVar("T")
LIBRARIES = ("torch", "transformers", "peft")
# Variables by which one machine stands for another: what of the CPU our kernels, torch's and MKL's use.
FORCING = ("SPARSEHUB_CPU", "ATEN_CPU_CAPABILITY", "MKL_ENABLE_INSTRUCTIONS", "OMP_NUM_THREADS")


@dataclass(frozen=True)
class Case:
    """Something to time. prepare: what must be true before `run`; it is not timed."""

    name: str
    run: Callable[[], Any]
    prepare: Callable[[], Any] = lambda: None


@dataclass(frozen=True)
class Timing:
    """Wall time in milliseconds over all rounds. fastest: the round that others disturbed least."""

    median: float
    fastest: float


@dataclass(frozen=True)
class Row:
    """One measured case. setup: what it ran on, equal for the rows of one table; measured: column -> figure."""

    case: str
    setup: Mapping[str, Any]
    measured: Mapping[str, Any]


@dataclass(frozen=True)
class Report:
    """What one script writes. notes: how to read the columns; checks: what the script has proved on the way."""

    name: str
    title: str
    rows: Sequence[Row]
    notes: Sequence[str] = field(default=())
    checks: Sequence[str] = field(default=())


def in_turn(items: Sequence[T], rounds: int) -> list[T]:
    """The order of a run: every item once a round, every other round backwards."""
    return [item for r in range(rounds) for item in (items if r % 2 == 0 else list(reversed(items)))]


def interleaved(cases: Sequence[Case], rounds: int, warmup: int = 2) -> dict[str, Timing]:
    """The timing of each case; warm-up rounds are run and not counted."""
    by_name = {case.name: case for case in cases}
    times: dict[str, list[float]] = {name: [] for name in by_name}
    for name in in_turn(list(by_name), warmup + rounds):
        by_name[name].prepare()
        start = time.perf_counter()
        by_name[name].run()
        times[name].append((time.perf_counter() - start) * 1e3)
    return {n: Timing(statistics.median(found[warmup:]), min(found[warmup:])) for n, found in times.items()}


def surroundings(threads: str) -> dict[str, Any]:
    """What a figure depends on beside the code. threads: torch's, inside one operation."""
    cores = len(os.sched_getaffinity(0))
    named = [f"{name}={os.environ[name]}" for name in FORCING if name in os.environ]
    versions = {name: importlib.metadata.version(name) for name in LIBRARIES}
    return {
        "machine": {
            "cpu": _cpu(),
            "kind": kind_of_cpu(),
            "cores": cores,
            "torch_threads": threads,
            "load": round(os.getloadavg()[1], 1),
        },
        "versions": {"sparsehub": __version__, **versions, "python": platform.python_version()},
        "command": without_places(" ".join([*named, "python -m", _module(), *sys.argv[1:]])),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def without_places(command: str) -> str:
    """The command with every absolute path named by its last two parts: where a file lies on one machine tells nobody
    anything."""
    return re.sub(r"(?<![^\s=])/(?:[^/\s=]+/)*([^/\s=]+/[^/\s=]+)", r"\1", command)


def _module() -> str:
    """The running script as `python -m` names it, and by its file's name where it was run as a file."""
    spec = sys.modules["__main__"].__spec__
    return spec.name if spec else Path(sys.argv[0]).name


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def kind_of_cpu() -> str:
    """Its name, the instruction set in use and the caches of a core: what the ratios of CPU kernels depend on."""
    instructions = native_module.machine().instruction_set if native_module.extension() else "no native kernels"
    caches = []
    for cache in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = ((cache / name).read_text().strip() for name in ("level", "type", "size"))
        if kind != "Instruction" and level in "12":
            caches.append(f"L{level} {size}")
    return ", ".join([_cpu(), instructions, *caches])


def write_report(report: Report, threads: str, kind: str | None = None) -> str:
    """Write results/<name>.jsonl (a line a case) and results/<name>.md, where what was measured on other kinds of CPU
    stays; returns the markdown. kind: of what does the work, where that is no CPU."""
    around = surroundings(threads)
    kind = around["machine"]["kind"] = kind or around["machine"]["kind"]
    table, text_file = RESULTS / f"{report.name}.jsonl", RESULTS / f"{report.name}.md"
    lines = _lines_of_others(table, kind)
    lines += [
        json.dumps({"benchmark": report.name, "case": r.case, "setup": r.setup, "measured": r.measured, **around})
        for r in report.rows
    ]
    sections = {**_sections(text_file), kind: _section(report, around)}
    head = [f"# {report.title}", *(["\n".join(f"- {note}" for note in report.notes)] if report.notes else [])]
    text = "\n\n".join([*head, *(f"## {kind}\n\n{sections[kind]}" for kind in sorted(sections))]) + "\n"
    RESULTS.mkdir(exist_ok=True)
    table.write_text("\n".join(lines) + "\n", encoding="utf-8")
    text_file.write_text(text, encoding="utf-8")
    return text


def _lines_of_others(table: Path, kind: str) -> list[str]:
    """The lines of other kinds of CPU; what names none is of before there were kinds."""
    lines = table.read_text(encoding="utf-8").splitlines() if table.is_file() else []
    return [line for line in lines if json.loads(line)["machine"].get("kind", kind) != kind]


def _sections(text_file: Path) -> dict[str, str]:
    """What a page says, by kind of CPU."""
    text = text_file.read_text(encoding="utf-8") if text_file.is_file() else ""
    parts = (part.partition("\n") for part in text.split("\n## ")[1:])
    return {kind: section.strip() for kind, _, section in parts}


def _section(report: Report, around: Mapping[str, Any]) -> str:
    """One run: how it was made, its tables and what it has proved."""
    machine, versions = around["machine"], around["versions"]
    parts = [
        f"`{around['command']}`, {around['date']}. {machine['cpu']}, {machine['cores']} cores, "
        f"torch threads: {machine['torch_threads']}, load average at the end {machine['load']}; "
        f"{', '.join(f'{k} {v}' for k, v in versions.items())}.",
    ]
    for setup in _distinct([row.setup for row in report.rows]):
        named = {name: value for name, value in setup.items() if name != KEY}
        parts.append("**" + ", ".join(f"{name}: {_shown(value)}" for name, value in named.items()) + "**")
        parts.append(_table([row for row in report.rows if row.setup == setup]))
    if report.checks:
        parts.append("\n".join(f"- {line}" for line in report.checks))
    return "\n\n".join(parts)


def _table(rows: Sequence[Row]) -> str:
    columns = _distinct([column for row in rows for column in row.measured])
    lines = [["", *columns], ["---", *["---:"] * len(columns)]]
    lines += [[row.case, *[_shown(row.measured.get(column, "")) for column in columns]] for row in rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _distinct(items: Sequence[Any]) -> list[Any]:
    return [item for place, item in enumerate(items) if item not in items[:place]]


def _shown(value: Any) -> str:
    if isinstance(value, float) and 0 < abs(value) < 100:
        return f"{value:.3g}"
    return f"{value:,.0f}" if isinstance(value, int | float) else str(value)


def verdict(what: str, value: float, limit: float, *, least: bool = False) -> str:
    """A figure beside the limit that it is held to, at most or at least, in one line."""
    held = value >= limit if least else value <= limit
    return f"{what}: {value:.3f}, at {'least' if least else 'most'} {limit:g}: {'held' if held else 'NOT held'}"


def bar_plot(name: str, title: str, labels: Sequence[str], series: Mapping[str, Sequence[float]]) -> None:
    """results/<name>.png: a group of bars for each label, one bar a series; a line at 1."""
    width = 0.8 / len(series)
    figure, axes = _figure(max(6.0, 0.3 * len(labels) * len(series))).subplots()
    for number, (case, values) in enumerate(series.items()):
        places = [place + (number - (len(series) - 1) / 2) * width for place in range(len(values))]
        bars = axes.bar(places, values, width, label=case)
        axes.bar_label(bars, [f"{value:.2f}" for value in values], fontsize=7, rotation=90, padding=2)
    axes.margins(y=0.12)  # for the numbers above the highest bars
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_xticks(range(len(labels)), labels, fontsize=7)
    _save(figure, axes, name, title)


def line_plot(
    name: str, title: str, x: Sequence[float], series: Mapping[str, Sequence[float]], axes_names: tuple[str, str]
) -> None:
    """results/<name>.png: a line for each series, x on a logarithmic axis."""
    figure, axes = _figure(7.0).subplots()
    for case, values in series.items():
        axes.plot(x[: len(values)], values, marker="o", label=case)
    axes.set_xscale("log")
    axes.set_xticks(x, [f"{value:g}" for value in x])
    axes.minorticks_off()
    axes.set_xlabel(axes_names[0])
    axes.set_ylabel(axes_names[1])
    axes.set_ylim(bottom=0)
    _save(figure, axes, name, title)


def _figure(width: float) -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.rcParams.update({"figure.figsize": (width, 4.2), "figure.dpi": 110, "figure.constrained_layout.use": True})
    return pyplot


def _save(figure: Any, axes: Any, name: str, title: str) -> None:
    axes.set_title(title, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    names = len(axes.get_legend_handles_labels()[0])
    figure.legend(loc="outside lower center", ncols=min(4, names), fontsize=8, frameon=False)
    figure.savefig(RESULTS / f"{name}.png")
