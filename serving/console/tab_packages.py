"""What a package is: where it changes the backbone, what it shares with others, and its card."""

from __future__ import annotations

from typing import Any

import gradio as gr

from serving.console.context import ConsoleContext
from serving.console.package_views import MOST_COMPARED


def build_inside(context: ConsoleContext, tab: gr.Tab) -> list[gr.Dropdown]:
    """Returns the lists of tasks, which the page keeps up to date."""
    task = gr.Dropdown([], label="Task", elem_id="inside-task", value=None)
    heat = gr.HTML(elem_id="inside-heat")
    card = gr.HTML(elem_id="inside-card")

    async def look(request: gr.Request, reference: str | None) -> list[str]:
        if not reference:
            return ["", ""]
        packages = context.packages
        return await context.inside(
            request, [reference], lambda digest: [packages.heat_map(digest), packages.card(digest)]
        )

    async def first(request: gr.Request, reference: str | None) -> Any:
        """A task to begin with: its package is read when somebody looks, not when the page is opened."""
        tasks = [] if reference else await context.asker(request).tasks()
        return gr.Dropdown(value=tasks[0]["id"]) if tasks else gr.skip()

    task.change(look, [task], [heat, card], api_visibility="private", trigger_mode="always_last")
    tab.select(first, [task], [task], api_visibility="private", show_progress="hidden")
    return [task]


def build_overlap(context: ConsoleContext) -> list[gr.Dropdown]:
    """Returns the lists of tasks, which the page keeps up to date."""
    info = f"2 to {MOST_COMPARED}: which entries they share, and whether they change them in the same direction"
    tasks = gr.Dropdown([], label="Tasks", info=info, elem_id="overlap-tasks", multiselect=True, value=[])
    button = gr.Button("Compare", variant="primary", elem_id="overlap-ask")
    picture = gr.HTML(elem_id="overlap-picture")

    async def look(request: gr.Request, references: list[str]) -> str:
        return await context.inside(request, references, lambda *digests: context.packages.overlap(digests))

    button.click(look, [tasks], picture, api_visibility="private", trigger_mode="once")
    return [tasks]
