"""The page: its parts, and what keeps them up to date."""

from __future__ import annotations

from html import escape
from typing import Any

import gradio as gr

from serving.auth import ADMIN, PREDICT, WATCH, Caller
from serving.auth.authenticator import ANONYMOUS
from serving.console.context import ConsoleContext
from serving.console.history import CHARTS, History
from serving.console.tab_catalog import build_catalog
from serving.console.tab_live import SECONDS, build_charts, build_table, state_of
from serving.console.tab_packages import build_inside, build_overlap
from serving.console.tab_try import build_compare, build_try
from serving.console.task_table import TaskRow
from sparsehub.errors import SparsehubError


def build_page(context: ConsoleContext) -> gr.Blocks:
    """A page without analytics, whose events can be called by itself alone."""
    with gr.Blocks(title="sparsehub console", analytics_enabled=False) as page:
        head = gr.HTML(elem_id="header")
        history, seen = gr.State(History()), gr.State([])
        with gr.Tabs(overflow_behavior="wrap", elem_id="tabs"):
            with gr.Tab("Tasks"):
                table = build_table(context.device)
            with gr.Tab("Try", visible=False) as trying:
                asked = build_try(context)
            with gr.Tab("Compare", visible=False) as comparing:
                choices = build_compare(context)
            with gr.Tab("Live"):
                charts = build_charts()
            with gr.Tab("Package") as inside:
                choices += build_inside(context, inside)
            with gr.Tab("Overlap"):
                choices += build_overlap(context)
            with gr.Tab("Catalogue", visible=False) as catalog:
                build_catalog(context, catalog)
        timer = gr.Timer(SECONDS)

        async def look(request: gr.Request, past: History, rows: list[TaskRow]) -> list[Any]:
            return await _looked(context, request, past, rows, len(choices))

        outputs = [head, history, seen, *asked, *choices, table, *charts]
        for event in (page.load, timer.tick):
            event(
                look,
                [history, seen],
                outputs,
                api_visibility="private",
                show_progress="hidden",
                concurrency_limit=8,
            )
        page.load(_tabs_for(context), None, [trying, comparing, catalog], api_visibility="private")
    page.queue(default_concurrency_limit=8, max_size=256, api_open=False)
    return page


def _tabs_for(context: ConsoleContext) -> Any:
    def fit(request: gr.Request) -> list[Any]:
        """A user sees the forms that the user's key can use."""
        try:
            may = context.caller(request).may
        except SparsehubError:  # the page says so
            may = frozenset()
        return [gr.Tab(visible=PREDICT in may), gr.Tab(visible=PREDICT in may), gr.Tab(visible=ADMIN in may)]

    return fit


async def _looked(
    context: ConsoleContext, request: gr.Request, past: History, seen: list[TaskRow], lists: int
) -> list[Any]:
    """The head, what is remembered, the choices of every list of tasks, the table and the charts."""
    try:
        caller = context.caller(request)
        tasks = await context.asker(request).tasks()
    except SparsehubError as error:
        problem = f'<span class="bad" role="alert">{escape(str(error))}</span> <a href="./">sign in</a>'
        return [_head(context, problem), *[gr.skip()] * (2 + 2 + lists + 1 + 1 + len(CHARTS))]
    shown, rows = state_of(tasks, context.device, past, seen)
    choices = _choices(rows, seen, lists)
    return [_head(context, _who(caller), len(tasks)), past, rows, *choices, *shown]


def _choices(rows: list[TaskRow], seen: list[TaskRow], lists: int) -> list[Any]:
    """The lists of tasks: in the tab Try the one that begins with a task and that of further tasks, then all others."""
    names = _served(rows)
    if names == _served(seen):
        return [gr.skip()] * (2 + lists)
    plain = gr.Dropdown(choices=names)
    first = plain if seen or not names else gr.Dropdown(choices=names, value=names[0])
    return [first, *[plain] * (1 + lists)]


def _served(rows: list[TaskRow]) -> list[str]:
    """What is there to choose; a version that drains only finishes what has begun."""
    return [row.texts[0] for row in rows if row.texts[1] != "draining"]


def _who(caller: Caller) -> str:
    if caller is ANONYMOUS:
        return '<span class="dim">open to this machine, without keys: what is served cannot be changed here</span>'
    role = next(role for role in (ADMIN, WATCH, PREDICT) if role in caller.may)
    button = '<form method="post" action="sign-out"><button id="sign-out">sign out</button></form>'
    return f'<span class="dim">signed in as <b>{escape(caller.name)}</b> ({role})</span>{button}'


def _head(context: ConsoleContext, who: str, tasks: int | None = None) -> str:
    count = "" if tasks is None else f" with {tasks} task{'' if tasks == 1 else 's'}"
    backbone = f'<span class="dim"><code>{escape(context.backbone)}</code>{count}</span>'
    home = '<h1><a href="../" title="Where things are at this endpoint">sparsehub</a></h1>'
    return f'<div id="head">{home}{backbone}{who}</div>'
