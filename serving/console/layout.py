"""The page: its parts, and what keeps them up to date."""

from __future__ import annotations

from html import escape
from typing import Any

import gradio as gr

from serving.auth import ADMIN, PREDICT, WATCH, Caller
from serving.auth.authenticator import ANONYMOUS, CONSOLE, SIGN_OUT
from serving.console.context import ConsoleContext
from serving.console.history import History
from serving.console.tab_catalog import build_catalog
from serving.console.tab_live import SECONDS, build_charts, build_table, state_of
from serving.console.tab_packages import build_inside, build_overlap
from serving.console.tab_try import build_compare, build_try
from sparsehub.errors import SparsehubError

FONT = ["system-ui", "sans-serif"]  # what the machine has: nothing is fetched
STYLE = """
.gradio-container {width: 100% !important; max-width: 1280px !important; margin: 0 auto}
footer {display: none !important}
#head {display: flex; flex-wrap: wrap; align-items: baseline; gap: 4px 18px}
#head h1 {font-size: 20px; font-weight: 650; margin: 0}
#head .dim, .who, #catalog-said p {opacity: .72}
#head form {display: inline; margin: 0}
#tasks table *, #catalog table * {font-family: var(--font)}
#head button {font: inherit; color: var(--link-text-color); text-decoration: underline; cursor: pointer}
#head button {background: none; border: 0}
p.bad, #head .bad {color: #b42318; font-weight: 600}
.dark p.bad, .dark #head .bad {color: #ff9a8d}
.who {font-size: 13px; margin: 6px 2px}
.number {font-size: 34px; font-weight: 650; margin: 8px 2px}
img.drawn {max-width: 100%; background: #fff; border-radius: 8px; padding: 6px; margin: 8px 0}
.card {max-width: 860px; overflow-wrap: anywhere}
.card table {display: block; overflow-x: auto; border: 0 !important}
"""


def build_page(context: ConsoleContext) -> gr.Blocks:
    """A page without analytics, whose events can be called by itself alone."""
    with gr.Blocks(title="sparsehub console", analytics_enabled=False) as page:
        head = gr.HTML(elem_id="header")
        history, seen = gr.State(History()), gr.State([])
        with gr.Tab("Tasks"):
            table = build_table()
        with gr.Tab("Try"):
            choices = build_try(context)
        with gr.Tab("Compare"):
            choices += build_compare(context)
        with gr.Tab("Live"):
            charts = build_charts()
        with gr.Tab("Package"):
            choices += build_inside(context)
        with gr.Tab("Overlap"):
            choices += build_overlap(context)

        with gr.Tab("Catalogue"):
            build_catalog(context, lambda *listener: page.load(*listener, api_visibility="private"))
        timer = gr.Timer(SECONDS)

        async def look(request: gr.Request, past: History, rows: list[Any]) -> list[Any]:
            return await _looked(context, request, past, rows, len(choices))

        outputs = [head, history, seen, *choices, table, *charts]
        for event in (page.load, timer.tick):
            event(look, [history, seen], outputs, api_visibility="private", show_progress="hidden", concurrency_limit=8)
    page.queue(default_concurrency_limit=8, max_size=256, api_open=False)
    return page


async def _looked(
    context: ConsoleContext, request: gr.Request, past: History, seen: list[Any], lists: int
) -> list[Any]:
    """The head, what is remembered, the choices of every list of tasks, the table and the charts."""
    try:
        caller = context.caller(request)
        tasks = await context.asker(request).tasks()
    except SparsehubError as error:
        problem = f'<span class="bad" role="alert">{escape(str(error))}</span> <a href="{CONSOLE}/">sign in</a>'
        return [_head(context, problem), *[gr.skip()] * (2 + lists + 6)]
    shown, rows = state_of(tasks, past, seen)
    names = [task["id"] for task in tasks if task["role"] != "draining"]
    known = [row[0] for row in rows if row[1] != "draining"] == [row[0] for row in seen if row[1] != "draining"]
    choices = [gr.skip() if known else gr.Dropdown(choices=names) for _ in range(lists)]
    return [_head(context, _who(caller), len(tasks)), past, rows, *choices, *shown]


def _who(caller: Caller) -> str:
    if caller is ANONYMOUS:
        return '<span class="dim">open to this machine, without keys: what is served cannot be changed here</span>'
    role = next(role for role in (ADMIN, WATCH, PREDICT) if role in caller.may)
    button = f'<form method="post" action="{SIGN_OUT}"><button id="sign-out">sign out</button></form>'
    return f'<span class="dim">signed in as <b>{escape(caller.name)}</b> ({role})</span>{button}'


def _head(context: ConsoleContext, who: str, tasks: int | None = None) -> str:
    count = "" if tasks is None else f" with {tasks} task{'' if tasks == 1 else 's'}"
    backbone = f'<span class="dim"><code>{escape(context.backbone)}</code>{count}</span>'
    return f'<div id="head"><h1>sparsehub</h1>{backbone}{who}</div>'
