"""The forms that change the catalogue, as they stand on the page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from serving.console.confirmed import Confirmation, build_confirmation

CANARY_PERCENT = 5  # that a new canary begins with, where nobody says another


@dataclass(frozen=True)
class TaskForms:
    """The forms that change one task of the catalogue; `views` are what another choice of a task changes."""

    task: gr.Dropdown
    now: gr.HTML
    promote: gr.Button
    rollback: gr.Button
    pin: gr.Button
    remove: gr.Button
    acts: Confirmation
    version: gr.Dropdown
    percent: gr.Slider
    effect: gr.HTML
    canary: gr.Button
    move: gr.Button
    trial: Confirmation
    items: gr.Number
    tokens: gr.Number
    save: gr.Button
    quotas: Confirmation

    @property
    def views(self) -> list[Any]:
        return [
            self.now,
            self.promote,
            self.rollback,
            self.pin,
            self.remove,
            self.version,
            self.percent,
            self.effect,
            self.canary,
            self.move,
            self.items,
            self.tokens,
            self.save,
        ]


def build_task_forms() -> TaskForms:
    """The forms of one task: its state and what can be done at once, its canary, its quotas."""
    task = gr.Dropdown([], label="Task", info="Or touch its row above", elem_id="act-task")
    now = gr.HTML(elem_id="act-now")
    with gr.Row():
        promote, rollback, pin, remove = (
            gr.Button(label, elem_id=f"act-{label.split()[0].lower()}", interactive=False, min_width=140)
            for label in ("Promote", "Roll back", "Pin", "Remove")
        )
    acts = build_confirmation("act")
    with gr.Row():
        with gr.Column(min_width=320):
            trial = _trial_form()
        with gr.Column(min_width=320):
            quotas = _quota_form()
    return TaskForms(task, now, promote, rollback, pin, remove, acts, *trial, *quotas)


def _trial_form() -> tuple[gr.Dropdown, gr.Slider, gr.HTML, gr.Button, gr.Button, Confirmation]:
    version = gr.Dropdown(
        [], label="Version", info="What the hub has", elem_id="act-version", allow_custom_value=True, value=None
    )
    percent = gr.Slider(0, 100, CANARY_PERCENT, step=1, label="Percent of the callers", elem_id="act-percent")
    effect = gr.HTML(elem_id="act-effect")
    with gr.Row():
        canary = gr.Button("Start the canary", elem_id="act-canary", interactive=False, min_width=140)
        move = gr.Button("Give it to everybody", elem_id="act-move", interactive=False, min_width=140)
    return version, percent, effect, canary, move, build_confirmation("trial")


def _quota_form() -> tuple[gr.Number, gr.Number, gr.Button, Confirmation]:
    info = "Of all callers together; empty for no limit"
    items = gr.Number(None, label="Items a second", info=info, minimum=0, elem_id="act-items")
    tokens = gr.Number(None, label="Tokens a second", info=info, minimum=0, elem_id="act-tokens")
    save = gr.Button("Set these limits", elem_id="act-quotas", interactive=False)
    return items, tokens, save, build_confirmation("quota")


def build_add_form() -> tuple[gr.Textbox, gr.Checkbox, gr.Button, Confirmation]:
    """The form of a task that is not served yet."""
    with gr.Accordion("Serve one more task", open=False, elem_id="add-task"):
        reference = gr.Textbox(
            label="Reference", info="name or name@version, as the hub has it", elem_id="add-reference", max_lines=1
        )
        pinned = gr.Checkbox(label="Pinned", info="It stays in memory", elem_id="add-pinned")
        add = gr.Button("Add", elem_id="add-do")
        return reference, pinned, add, build_confirmation("add")
