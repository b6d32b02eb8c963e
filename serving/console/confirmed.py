"""A part of a form that asks before it acts, and says beside its own fields what was refused."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr

from serving.console.catalog_acts import ROUTE, CatalogAct
from serving.console.context import ConsoleContext
from sparsehub.errors import SparsehubError


@dataclass(frozen=True)
class Confirmation:
    """Where a change waits for a yes. What proposes one gives `views` what `asked` or `refused` return."""

    waiting: gr.State  # a `CatalogAct`
    box: gr.Column
    question: gr.HTML
    yes: gr.Button
    no: gr.Button
    error: gr.HTML

    @property
    def views(self) -> list[Any]:
        return [self.waiting, self.box, self.question, self.error]


def build_confirmation(name: str) -> Confirmation:
    """name: what its elements' names begin with."""
    error = gr.HTML(elem_id=f"{name}-error", visible=False)
    with gr.Column(visible=False, elem_id=f"{name}-confirm", elem_classes="confirm") as box:
        question = gr.HTML()
        with gr.Row():
            yes = gr.Button("Yes, do it", variant="primary", elem_id=f"{name}-yes", min_width=120)
            no = gr.Button("No", elem_id=f"{name}-no", min_width=120)
    found = Confirmation(gr.State(None), box, question, yes, no, error)
    no.click(quiet, None, found.views, api_visibility="private", show_progress="hidden")
    return found


def asked(act: CatalogAct) -> list[Any]:
    """The question before an act."""
    return [act, gr.Column(visible=True), act.question, gr.HTML("", visible=False)]


def refused(error: SparsehubError | gr.Error) -> list[Any]:
    """Why it cannot be done, in place of a question."""
    text = error.message if isinstance(error, gr.Error) else str(error)
    shown = gr.HTML(f'<p class="bad" role="alert">{escape(text)}</p>', visible=True)
    return [None, gr.Column(visible=False), "", shown]


def quiet() -> list[Any]:
    """Neither a question nor an error."""
    return [None, gr.Column(visible=False), "", gr.HTML("", visible=False)]


async def done(context: ConsoleContext, request: gr.Request, act: CatalogAct | None) -> list[Any]:
    """Do what was asked for, through the endpoint's admin route, which knows what its user's key may."""
    if act is None:
        return quiet()
    try:
        await context.asker(request).post(f"{ROUTE}/{act.verb}", dict(act.body))
    except SparsehubError as error:
        return refused(error)
    gr.Info(f"{act.verb}: done", duration=4)
    return quiet()
