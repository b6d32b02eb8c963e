"""Ask one task; ask two tasks or two versions the same."""

from __future__ import annotations

import asyncio
from html import escape
from typing import Any

import gradio as gr

from serving.console.client import EndpointClient
from serving.console.context import ConsoleContext
from serving.console.task_forms import MOST_FIELDS, ShownAnswer, TaskForm, answer_of, form_of
from sparsehub.errors import RequestError, SparsehubError

SHOWN_LABELS = 20


def build_try(context: ConsoleContext) -> list[gr.Dropdown]:
    """Returns the lists of tasks, which the page keeps up to date."""
    with gr.Row():
        with gr.Column():
            task = _choice("Task", "try-task")
            boxes = _boxes("try")
            button = gr.Button("Ask", variant="primary", elem_id="try-ask")
        with gr.Column():
            views = _views("try")

    async def ask(request: gr.Request, reference: str, *texts: str) -> list[Any]:
        return _view(await _answer(context.asker(request), reference, texts))

    _on_choice(context, task, boxes)
    _on_ask(ask, button, boxes, [task], views)
    return [task]


def build_compare(context: ConsoleContext) -> list[gr.Dropdown]:
    """Returns the lists of tasks, which the page keeps up to date."""
    with gr.Row():
        first, second = _choice("First task or version", "compare-first"), _choice("Second", "compare-second")
    boxes = _boxes("compare")
    button = gr.Button("Ask both", variant="primary", elem_id="compare-ask")
    with gr.Row():
        with gr.Column():
            left = _views("left")
        with gr.Column():
            right = _views("right")

    async def ask(request: gr.Request, one: str, other: str, *texts: str) -> list[Any]:
        asker = context.asker(request)
        answers = await asyncio.gather(*(_answer(asker, reference, texts) for reference in (one, other)))
        return [part for answer in answers for part in _view(answer)]

    _on_choice(context, first, boxes)
    _on_ask(ask, button, boxes, [first, second], [*left, *right])
    return [first, second]


def _choice(label: str, elem_id: str) -> gr.Dropdown:
    info = "A task, one of its versions, or several composed: topic+urgency*0.5"
    return gr.Dropdown([], label=label, info=info, elem_id=elem_id, allow_custom_value=True, value=None)


def _boxes(name: str) -> list[gr.Textbox]:
    """A box for each field that a task can have; those of the chosen task are there to see."""
    return [
        gr.Textbox(label="Text", lines=2, visible=i == 0, elem_id=f"{name}-text-{i}", placeholder="What shall it read?")
        for i in range(MOST_FIELDS)
    ]


def _views(name: str) -> list[Any]:
    """Where an answer goes: bars, words, a number or a text; and the endpoint's own JSON."""
    bars = gr.Label(label="Probabilities", num_top_classes=SHOWN_LABELS, elem_id=f"{name}-bars")
    words = gr.HighlightedText(
        label="Words", visible=False, elem_id=f"{name}-words", combine_adjacent=False, show_legend=True
    )
    text = gr.HTML(elem_id=f"{name}-answer")
    with gr.Accordion("The answer as clients get it", open=False):
        raw = gr.JSON(label="JSON", elem_id=f"{name}-json", show_label=False)
    return [bars, words, text, raw]


def _view(answer: ShownAnswer) -> list[Any]:
    return [
        gr.Label(answer.probabilities, visible=answer.probabilities is not None),
        gr.HighlightedText(list(answer.words or ()), visible=answer.words is not None),
        answer.text,
        answer.raw,
    ]


async def _answer(ask: EndpointClient, reference: str, texts: tuple[str, ...]) -> ShownAnswer:
    try:
        return await answer_of(ask, await form_of(ask, reference), texts)
    except SparsehubError as error:  # in the answer's place: an older one would look like this one's
        return ShownAnswer(f'<p class="bad" role="alert">{escape(str(error))}</p>')


def _on_choice(context: ConsoleContext, task: gr.Dropdown, boxes: list[gr.Textbox]) -> None:
    async def fit(request: gr.Request, reference: str | None) -> list[Any]:
        try:
            form = await form_of(context.asker(request), reference or "")
        except RequestError:  # half a name, or nothing yet; asking says what is wrong
            form = TaskForm("", ("Text",), "")
        names = [*form.fields, *[""] * (MOST_FIELDS - len(form.fields))]
        return [gr.Textbox(label=name, visible=i < len(form.fields)) for i, name in enumerate(names)]

    task.change(fit, [task], boxes, api_visibility="private", show_progress="hidden", trigger_mode="always_last")


def _on_ask(
    ask: Any, button: gr.Button, boxes: list[gr.Textbox], tasks: list[gr.Dropdown], views: list[gr.Component]
) -> None:
    gr.on(
        [button.click, *(box.submit for box in boxes)],
        ask,
        [*tasks, *boxes],
        views,
        api_visibility="private",
        trigger_mode="once",
    )
