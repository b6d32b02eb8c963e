"""Ask one task, or several at once; compare two tasks or two versions side by side."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import gradio as gr

from serving.auth import ANONYMOUS
from serving.console.answer_cards import TOP_LABELS, cards_of
from serving.console.client import EndpointClient
from serving.console.context import ConsoleContext
from serving.console.examples import TaskExample
from serving.console.fan_out import FanOut, ask_tasks
from serving.console.snippets import curl_lines, python_lines
from serving.console.task_forms import MOST_FIELDS, ShownAnswer, TaskForm, answer_of, failed_answer, form_of
from sparsehub.errors import RequestError, SparsehubError

_MOST_MORE = 31  # further tasks: what is still read on one page


def build_try(context: ConsoleContext) -> list[gr.Dropdown]:
    """Returns the lists of tasks, which the page keeps up to date: the first is of the task, the second of more."""
    with gr.Row():
        with gr.Column():
            task = _choice("Task", "try-task")
            more = gr.Dropdown(
                [],
                label="More tasks, for the same text",
                info="All are asked in one request",
                multiselect=True,
                max_choices=_MOST_MORE,
                value=[],
                elem_id="try-more",
            )
            boxes = _boxes("try")
            examples = gr.State([])
            shown = gr.Dataset(
                components=["textbox"],
                samples=[],
                type="index",
                label="Examples",
                visible=False,
                elem_id="try-examples",
            )
            button = gr.Button("Ask", variant="primary", elem_id="try-ask")
        with gr.Column():
            cards = gr.HTML(elem_id="try-several", visible=False)
            views = _views("try")
            lines = _snippets()

    async def ask(request: gr.Request, reference: str | None, others: list[str], *texts: str) -> list[Any]:
        found = await ask_tasks(context.asker(request), [reference or "", *(others or [])], texts)
        return [*_seen(found), *_lines(context, request, found)]

    async def offer(request: gr.Request, reference: str | None) -> list[Any]:
        try:
            found = await context.inside(request, [reference or ""], context.packages.examples)
        except (gr.Error, SparsehubError):  # a composition, half a name, or nothing yet
            found = []
        return [gr.Dataset(samples=[[example.label] for example in found], visible=bool(found)), found]

    def pick(given: list[TaskExample], index: int) -> list[str]:
        texts = given[index].texts
        return [*texts, *[""] * (MOST_FIELDS - len(texts))]

    outputs = [cards, *views, *lines]
    _on_choice(context, task, boxes)
    task.change(
        offer, [task], [shown, examples], api_visibility="private", show_progress="hidden", trigger_mode="always_last"
    )
    _on_ask(ask, button, boxes, [task, more], outputs)
    picked = shown.click(pick, [examples, shown], boxes, api_visibility="private", show_progress="hidden")
    picked.then(ask, [task, more, *boxes], outputs, api_visibility="private")
    return [task, more]


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

    async def ask(request: gr.Request, one: str | None, other: str | None, *texts: str) -> list[Any]:
        asker = context.asker(request)
        answers = await asyncio.gather(*(_answer(asker, reference or "", texts) for reference in (one, other)))
        return [part for answer in answers for part in _view(answer)]

    _on_choice(context, first, boxes)
    _on_ask(ask, button, boxes, [first, second], [*left, *right])
    return [first, second]


def _choice(label: str, elem_id: str) -> gr.Dropdown:
    info = "A task, one of its versions, or several composed: topic+urgency*0.5"
    return gr.Dropdown([], label=label, info=info, elem_id=elem_id, allow_custom_value=True, value=None, min_width=280)


def _boxes(name: str) -> list[gr.Textbox]:
    """A box for each field that a task can have; those of the chosen task are there to see."""
    return [
        gr.Textbox(label="Text", lines=2, visible=i == 0, elem_id=f"{name}-text-{i}", placeholder="What shall it read?")
        for i in range(MOST_FIELDS)
    ]


def _views(name: str) -> list[Any]:
    """Where one task's answer goes: bars, words, a number or a text; and the endpoint's own JSON."""
    bars = gr.Label(label="Probabilities", num_top_classes=TOP_LABELS, visible=False, elem_id=f"{name}-bars")
    words = gr.HighlightedText(
        label="Words", visible=False, elem_id=f"{name}-words", combine_adjacent=False, show_legend=True
    )
    text = gr.HTML(elem_id=f"{name}-answer", visible=False)
    with gr.Accordion("The answer as clients get it", open=False):
        raw = gr.JSON(label="JSON", elem_id=f"{name}-json", show_label=False)
    return [bars, words, text, raw]


def _snippets() -> list[gr.Code]:
    """Where the same request goes as lines to copy."""
    with gr.Accordion("Copy as curl or Python", open=False, elem_id="try-copy"):
        return [
            gr.Code(
                label=label,
                interactive=False,
                lines=2,
                wrap_lines=True,
                show_line_numbers=False,
                buttons=["copy"],
                elem_id=f"try-{label.lower()}",
            )
            for label in ("curl", "Python")
        ]


def _lines(context: ConsoleContext, request: gr.Request, found: FanOut) -> list[str]:
    keyed, url = context.caller(request) is not ANONYMOUS, context.url(request)
    return [curl_lines(url, found.sent, keyed), python_lines(url, found.sent, keyed)]


def _seen(found: FanOut) -> list[Any]:
    """One task's answer in views of its kind; those of several as cards, with what the endpoint said beside them."""
    if len(found.answers) == 1:
        return [gr.HTML("", visible=False), *_view(found.answers[0])]
    raw = [answer.raw for answer in found.answers if answer.raw is not None]
    return [gr.HTML(cards_of(found.answers), visible=True), *_view(ShownAnswer("", raw))]


def _view(answer: ShownAnswer) -> list[Any]:
    return [
        gr.Label(answer.probabilities, visible=answer.probabilities is not None),
        gr.HighlightedText(list(answer.words or ()), visible=answer.words is not None),
        gr.HTML(answer.text, visible=bool(answer.text)),
        answer.raw,
    ]


async def _answer(ask: EndpointClient, reference: str, texts: Sequence[str]) -> ShownAnswer:
    try:
        return await answer_of(ask, await form_of(ask, reference), texts)
    except SparsehubError as error:
        return failed_answer(reference, error)


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
