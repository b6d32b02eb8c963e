"""The tasks as rows of a table."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from sparsehub.package.units import size_text

COLUMNS = {
    "task": "str",
    "role": "str",
    "where": "str",
    "kind": "str",
    "entries": "str",
    "memory": "str",
    "requests": "number",
    "failed": "number",
    "last used": "str",
    "p50 ms": "number",
    "p99 ms": "number",
    "digest": "str",
}


def row_of(task: Mapping[str, Any], now: float) -> list[Any]:
    """A task as `GET /v1/tasks` tells it. now: seconds since 1970."""
    return [
        task["id"],
        task["role"] or "",
        f"{task['where']}, pinned" if task["pinned"] else task["where"],
        task["kind"] or "not read yet",
        f"{task['nnz']:,}" if task["nnz"] is not None else "",
        size_text(task["bytes"]) if task["bytes"] else "",
        task["requests"],
        task["failed"],
        ago(task["last_used"], now),
        task["p50_ms"],
        task["p99_ms"],
        task["digest"].removeprefix("sha256:")[:12],
    ]


def rows_of(tasks: list[dict[str, Any]]) -> list[list[Any]]:
    now = time.time()
    return [row_of(task, now) for task in tasks]


def ago(moment: float | None, now: float) -> str:
    """How long ago that is, for people."""
    if moment is None:
        return "never"
    seconds = max(0.0, now - moment)
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit} ago"
    return "just now" if seconds < 10 else f"{seconds // 10 * 10:.0f} s ago"
