"""The catalogue, for admins: what it says, and its verbs. Everything goes through the endpoint's admin routes."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any
from urllib.parse import quote

import gradio as gr

from serving.console.catalog_acts import (
    COLUMNS,
    NO,
    ROUTE,
    YES,
    CatalogAct,
    body_of,
    canary_text,
    entry_text,
    question_of,
    quotas_of,
    row_of_entry,
)
from serving.console.catalog_forms import CANARY_PERCENT, TaskForms, build_add_form, build_task_forms
from serving.console.confirmed import Confirmation, asked, done, refused
from serving.console.context import ConsoleContext
from sparsehub.errors import SparsehubError


def build_catalog(context: ConsoleContext, tab: gr.Tab) -> None:
    """tab: that all of it is in; the catalogue is read whenever it is opened."""
    with gr.Row(elem_id="catalog-head"):
        said = gr.HTML(elem_id="catalog-said")
        again = gr.Button("Look again", size="sm", scale=0, min_width=130, elem_id="catalog-again")
    table = gr.Dataframe(
        headers=list(COLUMNS),
        column_widths=[f"{width}px" for width in COLUMNS.values()],
        interactive=False,
        wrap=True,
        buttons=["copy"],
        elem_id="catalog",
        label="Catalogue",
        show_label=False,
    )
    state = gr.State(None)
    with gr.Column(visible=False, elem_id="catalog-forms") as forms:
        its = build_task_forms()
        reference, pinned, add, adding = build_add_form()

    async def look(request: gr.Request, chosen: str | None) -> list[Any]:
        return await _looked(context, request, chosen)

    async def show(request: gr.Request, name: str | None, seen: dict[str, Any] | None) -> list[Any]:
        return await _shown(context, request, name, seen)

    def choose(event: gr.SelectData) -> str:
        return str(event.row_value[0])

    def effect(name: str | None, seen: dict[str, Any] | None, version: str | None, percent: float) -> str:
        entry = _entry(seen, name)
        return "" if entry is None else canary_text(str(name), entry, version, percent)

    def propose_add(seen: dict[str, Any] | None, name: str, pin: bool) -> list[Any]:
        values = {"reference": name.strip(), "pinned": YES if pin else NO}
        text = f"<p><b>{escape(name.strip())}</b> is served to all keys that may ask it.</p>"
        return _proposed("add", values, seen, text)

    quietly: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    views = [said, table, state, forms, its.task]
    for event in (tab.select, again.click):
        event(look, [its.task], views, api_visibility="private").then(show, [its.task, state], its.views, **quietly)
    table.select(choose, None, [its.task], **quietly)
    its.task.change(show, [its.task, state], its.views, **quietly, trigger_mode="always_last")
    for changed in (its.version.change, its.percent.change):
        changed(effect, [its.task, state, its.version, its.percent], [its.effect], **quietly)
    add.click(propose_add, [state, reference, pinned], adding.views, **quietly)
    _propose_on_click(its, state)
    for part in (its.acts, its.trial, its.quotas, adding):
        _do_on_yes(context, part, (look, show), views, its, state)


def _propose_on_click(its: TaskForms, state: gr.State) -> None:
    """Have every button ask before anything is done."""

    def simple(verb: str) -> Any:
        def propose(seen: dict[str, Any] | None, name: str | None) -> list[Any]:
            return _proposed_change(verb, {"task": name}, seen, name)

        return propose

    def pin(seen: dict[str, Any] | None, name: str | None) -> list[Any]:
        entry = _entry(seen, name)
        values = {"task": name, "pinned": NO if entry is not None and entry["pinned"] else YES}
        return _proposed_change("set", values, seen, name)

    def canary(seen: dict[str, Any] | None, name: str | None, version: str | None, percent: float) -> list[Any]:
        values = {"reference": f"{name}@{version}" if version else None, "percent": percent}
        return _proposed_change("canary", values, seen, name)

    def move(seen: dict[str, Any] | None, name: str | None, version: str | None) -> list[Any]:
        return _proposed_change("set", {"task": name, "version": version}, seen, name)

    def quotas(seen: dict[str, Any] | None, name: str | None, items: float, tokens: float) -> list[Any]:
        return _proposed_quotas(seen, name, items, tokens)

    quietly: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    for button, verb in ((its.promote, "promote"), (its.rollback, "rollback"), (its.remove, "remove")):
        button.click(simple(verb), [state, its.task], its.acts.views, **quietly)
    its.pin.click(pin, [state, its.task], its.acts.views, **quietly)
    its.canary.click(canary, [state, its.task, its.version, its.percent], its.trial.views, **quietly)
    its.move.click(move, [state, its.task, its.version], its.trial.views, **quietly)
    its.save.click(quotas, [state, its.task, its.items, its.tokens], its.quotas.views, **quietly)


def _do_on_yes(
    context: ConsoleContext, part: Confirmation, reads: Any, views: list[Any], its: TaskForms, state: gr.State
) -> None:
    look, show = reads

    async def do(request: gr.Request, act: CatalogAct | None) -> list[Any]:
        return await done(context, request, act)

    acted = part.yes.click(do, [part.waiting], part.views, api_visibility="private", trigger_mode="once")
    looked = acted.then(look, [its.task], views, api_visibility="private", show_progress="hidden")
    looked.then(show, [its.task, state], its.views, api_visibility="private", show_progress="hidden")


def _proposed(verb: str, values: Mapping[str, Any], seen: dict[str, Any] | None, question: str) -> list[Any]:
    """A change that waits for a yes, or what is missing for it."""
    try:
        body = body_of(verb, values, None if seen is None else seen["revision"])
    except gr.Error as error:
        return refused(error)
    return asked(CatalogAct(verb, body, question))


def _proposed_change(verb: str, values: Mapping[str, Any], seen: dict[str, Any] | None, name: str | None) -> list[Any]:
    entry = _entry(seen, name)
    if entry is None:
        return refused(gr.Error("choose a task of the catalogue"))
    if values.get("reference", "") is None or values.get("version", "") is None:
        return refused(gr.Error("choose a version"))
    return _proposed(verb, values, seen, question_of(verb, str(name), entry, values))


def _proposed_quotas(seen: dict[str, Any] | None, name: str | None, items: float, tokens: float) -> list[Any]:
    entry = _entry(seen, name)
    if seen is None or entry is None:
        return refused(gr.Error("choose a task of the catalogue"))
    body = quotas_of(str(name), items, tokens, seen["revision"])
    return asked(CatalogAct("set", body, question_of("set", str(name), entry, body)))


def _entry(seen: dict[str, Any] | None, name: str | None) -> dict[str, Any] | None:
    found: dict[str, Any] | None = None if seen is None else seen["tasks"].get(name)
    return found


async def _looked(context: ConsoleContext, request: gr.Request, chosen: str | None) -> list[Any]:
    """What the catalogue says now, and its tasks to choose from; where it may not be read, why."""
    try:
        state = await context.asker(request).get(ROUTE)
    except SparsehubError as error:
        why = f"<p>The catalogue is for admin keys, on an endpoint that follows one: {escape(str(error))}</p>"
        return [why, [], None, gr.Column(visible=False), gr.Dropdown(choices=[], value=None)]
    trouble = f" It cannot be followed: {escape(state['error'])}" if state["error"] else ""
    draining = f", {state['draining']} versions drain" if state["draining"] else ""
    said = f"<p><b>Revision {state['revision']}</b> of <code>{escape(state['where'])}</code>{draining}.{trouble}</p>"
    names = sorted({*state["tasks"], *state["refused"]})
    rows = [row_of_entry(name, state["tasks"].get(name), state["refused"].get(name, "")) for name in names]
    tasks = sorted(state["tasks"])
    value = chosen if chosen in tasks else next(iter(tasks), None)
    return [said, rows, state, gr.Column(visible=True), gr.Dropdown(choices=tasks, value=value)]


async def _shown(
    context: ConsoleContext, request: gr.Request, name: str | None, seen: dict[str, Any] | None
) -> list[Any]:
    """What the forms of a task say, in the order of `TaskForms.views`."""
    entry = _entry(seen, name)
    if entry is None:
        idle = [gr.Button(interactive=False)] * 4
        rest = [gr.Dropdown(choices=[], value=None), CANARY_PERCENT, "", *[gr.Button(interactive=False)] * 2]
        return ["", *idle, *rest, None, None, gr.Button(interactive=False)]
    stable, canary, before = entry["stable"]["version"], entry["canary"], entry["before"]
    versions = await _versions(context, request, str(name))
    version = canary["version"] if canary else next((one for one in versions[::-1] if one != stable), None)
    percent = entry["canary_percent"] if canary else CANARY_PERCENT
    back = (
        f"End the canary {canary['version']}" if canary else f"Roll back to {before[-1]['version']}" if before else ""
    )
    return [
        entry_text(str(name), entry),
        gr.Button(f"Promote {canary['version']}" if canary else "Promote", interactive=canary is not None),
        gr.Button(back or "Roll back", interactive=bool(back)),
        gr.Button("Unpin" if entry["pinned"] else "Pin", interactive=True),
        gr.Button(interactive=True),
        gr.Dropdown(choices=versions, value=version),
        percent,
        canary_text(str(name), entry, version, percent),
        gr.Button("Change the canary" if canary else "Start the canary", interactive=True),
        gr.Button(interactive=True),
        entry["items_per_second"],
        entry["tokens_per_second"],
        gr.Button(interactive=True),
    ]


async def _versions(context: ConsoleContext, request: gr.Request, name: str) -> list[str]:
    """What the hub has of a task, as far as it can be read now; a version can also be written by hand."""
    try:
        found = await context.asker(request).get(f"{ROUTE}/versions/{quote(name, safe='')}")
    except SparsehubError:  # the hub is away: what is served goes on, and so does this form
        return []
    return [entry["version"] for entry in found["data"] if entry["error"] is None]
