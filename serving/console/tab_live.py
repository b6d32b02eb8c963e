"""The tasks as they are now, and charts of the last minutes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from html import escape
from typing import Any

import gradio as gr
import pandas as pd

from serving.console.history import CHARTS, LOOKS, MEMORY, P50, P99, RESIDENT, THROUGHPUT, History, axis_top
from serving.console.task_table import COLUMNS, TaskRow, row_of, table_of, where_text

SECONDS = 2.0  # between two looks
_TRAFFIC = (THROUGHPUT, P50, P99)  # charts that are empty until somebody asks
_TITLES = {
    THROUGHPUT: ("Throughput", "requests a second"),
    P50: ("Latency, p50", "milliseconds, 0 at rest"),
    P99: ("Latency, p99", "milliseconds, 0 at rest"),
    RESIDENT: ("Where the tasks are", "tasks"),
    MEMORY: ("Memory of the tasks", "MiB"),
}
_QUIET = (
    '<p class="quiet"><b>No traffic yet.</b> Charts of throughput and latency begin with the first request to a task: '
    "ask one in the tab Try.</p>"
)


def build_table(device: str) -> gr.Dataframe:
    """device: what the tasks run on."""
    table = gr.Dataframe(
        headers=list(COLUMNS),
        datatype=[kind for kind, _ in COLUMNS.values()],
        column_widths=[f"{width}px" for _, width in COLUMNS.values()],
        interactive=False,
        wrap=True,
        buttons=["copy"],
        max_height=620,
        elem_id="tasks",
        label="Tasks",
        show_label=False,
    )
    gr.HTML(f'<p class="who">{where_text(escape(device))}</p>')
    return table


def build_charts() -> list[gr.HTML | gr.LinePlot]:
    """A notice for as long as nothing was asked, and the charts."""
    quiet = gr.HTML(_QUIET, elem_id="no-traffic")
    with gr.Row():
        throughput = _chart(THROUGHPUT)
    with gr.Row():
        latency = [_chart(P50), _chart(P99)]
    with gr.Row():
        residency = [_chart(RESIDENT), _chart(MEMORY)]
    return [quiet, throughput, *latency, *residency]


def state_of(
    tasks: list[dict[str, Any]], device: str, history: History, seen: list[TaskRow]
) -> tuple[list[Any], list[TaskRow]]:
    """What the table and the charts show now, and the rows to be compared with next time: a table that says the same is
    left alone, so that it keeps how its user sorted it."""
    now = datetime.now(UTC)
    history.look(tasks, now)
    rows = [row_of(task, device, now.timestamp()) for task in tasks]
    same = [row.texts for row in rows] == [row.texts for row in seen]
    charts = [_drawn(history, chart, now) for chart in CHARTS]
    return [gr.skip() if same else table_of(rows), gr.HTML(visible=not history.asked), *charts], rows


def _drawn(history: History, chart: str, now: datetime) -> gr.LinePlot:
    """A chart as it is now: all charts are of the same minutes, and a task has one colour in all of them."""
    points = history.series(chart)
    begin = now - timedelta(seconds=LOOKS * SECONDS)
    return gr.LinePlot(
        pd.DataFrame(points, columns=["time", "series", "value"]),
        color_map=history.colours(),
        x_lim=[begin.timestamp(), now.timestamp()],
        y_lim=[0, axis_top([value for _, _, value in points])],
        visible=history.asked or chart not in _TRAFFIC,
    )


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
        min_width=320,
        elem_id=f"chart-{name}",
        tooltip="all",
        y_axis_format=",d",
        visible=name not in _TRAFFIC,
    )
