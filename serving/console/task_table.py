"""The tasks as rows of a table, which sorts by numbers and shows them as people read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sparsehub.package.units import size_text

# Each with its type, by which it sorts, and its width in pixels.
COLUMNS = {
    "task": ("str", 140),
    "role": ("str", 80),
    "where": ("str", 112),
    "kind": ("str", 118),
    "entries": ("number", 92),
    "memory": ("number", 97),
    "requests": ("number", 102),
    "failed": ("number", 84),
    "last used": ("number", 110),
    "p50 ms": ("number", 92),
    "p99 ms": ("number", 92),
    "digest": ("str", 95),
}
_UNKNOWN = -1.0  # sorts below every number, and is not shown


@dataclass(frozen=True)
class TaskRow:
    """A task. values: what its cells sort by; texts: what they show."""

    values: tuple[str | float, ...]
    texts: tuple[str, ...]


def row_of(task: Mapping[str, Any], device: str, now: float) -> TaskRow:
    """A task as `GET /v1/tasks` tells it. device: what `device` is here; now: seconds since 1970."""
    place = f"device ({device})" if task["where"] == "device" else task["where"]
    cells: list[tuple[str | float, str] | str] = [
        task["id"],
        task["role"] or "served",
        f"{place}, pinned" if task["pinned"] else place,
        task["kind"] or "not read yet",
        _number(task["nnz"], f"{task['nnz'] or 0:,}"),
        _number(task["bytes"] or None, size_text(task["bytes"])),
        _number(task["requests"], f"{task['requests']:,}"),
        _number(task["failed"], f"{task['failed']:,}"),
        (task["last_used"] or 0.0, ago(task["last_used"], now)),
        _number(task["p50_ms"], _milliseconds(task["p50_ms"])),
        _number(task["p99_ms"], _milliseconds(task["p99_ms"])),
        task["digest"].removeprefix("sha256:")[:8],
    ]
    pairs = [(cell, cell) if isinstance(cell, str) else cell for cell in cells]
    return TaskRow(tuple(value for value, _ in pairs), tuple(text for _, text in pairs))


def table_of(rows: Sequence[TaskRow]) -> dict[str, Any]:
    """The rows as Gradio's table takes them."""
    texts = {"display_value": [list(row.texts) for row in rows]}
    return {"headers": list(COLUMNS), "data": [list(row.values) for row in rows], "metadata": texts}


def where_text(device: str) -> str:
    """What the places in the table mean, for below it."""
    return (
        f"<b>device ({device})</b>: ready to run. <b>host</b>: its package is in memory, and the next request makes it "
        "ready. <b>disk</b>: the next request reads its package. <b>memory</b> is what it takes on the device. "
        "The menu of a column sorts by it, and filters."
    )


def ago(moment: float | None, now: float) -> str:
    """How long ago that is, for people."""
    if moment is None:
        return "never"
    seconds = max(0.0, now - moment)
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit} ago"
    return "just now" if seconds < 10 else f"{seconds // 10 * 10:.0f} s ago"


def _number(value: float | None, text: str) -> tuple[float, str]:
    return (_UNKNOWN, "") if value is None else (value, text)


def _milliseconds(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
