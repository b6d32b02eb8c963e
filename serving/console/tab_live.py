"""The tasks as they are now, and charts of the last minutes."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import gradio as gr
import pandas as pd

from serving.console.history import CHARTS, MEMORY, P50, P99, RESIDENT, THROUGHPUT, History
from serving.console.task_table import COLUMNS, rows_of

SECONDS = 2.0  # between two looks
_TITLES = {
    THROUGHPUT: ("Throughput", "requests a second"),
    P50: ("Latency, p50", "milliseconds"),
    P99: ("Latency, p99", "milliseconds"),
    RESIDENT: ("Where the tasks are", "tasks"),
    MEMORY: ("Memory of the tasks", "MiB"),
}


def build_table() -> gr.Dataframe:
    return gr.Dataframe(
        headers=list(COLUMNS),
        datatype=list(COLUMNS.values()),
        interactive=False,
        show_search="filter",
        max_height=620,
        elem_id="tasks",
        label="Tasks",
        show_label=False,
        pinned_columns=1,
    )


def build_charts() -> list[gr.LinePlot]:
    with gr.Row():
        throughput = _chart(THROUGHPUT)
    with gr.Row():
        latency = [_chart(P50), _chart(P99)]
    with gr.Row():
        residency = [_chart(RESIDENT), _chart(MEMORY)]
    return [throughput, *latency, *residency]


def state_of(tasks: list[dict[str, Any]], history: History, seen: list[list[Any]]) -> tuple[list[Any], list[list[Any]]]:
    """What the table and the charts show now, and the rows to be compared with next time: a table that says the same is
    left alone, so that it keeps how its user sorted it."""
    history.look(tasks, datetime.now())
    rows = rows_of(tasks)
    table = gr.skip() if rows == seen else rows
    return [table, *(_frame(history, chart) for chart in CHARTS)], rows


def _frame(history: History, chart: str) -> pd.DataFrame:
    return pd.DataFrame(history.series(chart), columns=["time", "series", "value"])


def _chart(name: str) -> gr.LinePlot:
    title, unit = _TITLES[name]
    return gr.LinePlot(
        x="time",
        y="value",
        color="series",
        title=title,
        x_title=" ",
        y_title=unit,
        color_title=" ",
        height=240,
        elem_id=f"chart-{name}",
        tooltip="all",
    )
