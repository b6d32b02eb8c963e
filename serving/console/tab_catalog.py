"""The catalogue, for admins: what it says, and its verbs. Everything goes through the endpoint's admin routes."""

from __future__ import annotations

from html import escape
from typing import Any

import gradio as gr

from serving.console.context import ConsoleContext, shown
from sparsehub.errors import SparsehubError

ROUTE = "/v1/admin/catalog"
# What each verb needs, by the names of the route's fields.
FIELDS: dict[str, tuple[str, ...]] = {
    "add": ("reference", "pinned", "items_per_second", "tokens_per_second"),
    "set": ("task", "version", "pinned", "items_per_second", "tokens_per_second"),
    "canary": ("reference", "percent"),
    "promote": ("task",),
    "rollback": ("task",),
    "remove": ("task",),
    "reload": (),
}
NEEDED = {"reference", "task", "percent"}
_HEADERS = ["task", "stable", "canary", "share", "pinned", "items/s", "tokens/s", "before", "refused"]
_LEAVE, _YES, _NO = "as it is", "yes", "no"


def build_catalog(context: ConsoleContext, load: Any) -> None:
    """load: adds a listener to the page's first look."""
    with gr.Row(elem_id="catalog-head"):
        said = gr.HTML(elem_id="catalog-said")
        again = gr.Button("Look again", size="sm", scale=0, min_width=130)
    table = gr.Dataframe(headers=_HEADERS, interactive=False, elem_id="catalog", label="Catalogue", show_label=False)
    revision = gr.State(None)
    with gr.Group():
        verb = gr.Radio(list(FIELDS), value="add", label="Change it", elem_id="act")
        with gr.Row():
            inputs = _inputs()
    act = gr.Button("Do it", variant="primary", elem_id="act-do")

    async def look(request: gr.Request) -> list[Any]:
        return await _looked(context, request)

    async def do(request: gr.Request, verb: str, seen: int | None, *values: Any) -> list[Any]:
        body = body_of(verb, dict(zip(inputs, values, strict=True)), seen)
        try:
            await context.asker(request).post(f"{ROUTE}/{verb}", body)
        except SparsehubError as error:
            raise shown(error) from error
        gr.Info(f"{verb}: done", duration=4)
        return await _looked(context, request)

    def fit(verb: str) -> list[Any]:
        return [gr.update(visible=name in FIELDS[verb]) for name in inputs]

    views = [said, table, revision]
    load(look, None, views)
    again.click(look, None, views, api_visibility="private")
    act.click(do, [verb, revision, *inputs.values()], views, api_visibility="private", trigger_mode="once")
    verb.change(fit, verb, list(inputs.values()), api_visibility="private", show_progress="hidden")


def body_of(verb: str, values: dict[str, Any], revision: int | None) -> dict[str, Any]:
    """What the route gets: what the verb takes, as far as it is filled in. Raises `gr.Error` for a gap."""
    body = {name: _value(name, values[name]) for name in FIELDS.get(verb, ())}
    gaps = sorted(name for name in NEEDED & body.keys() if body[name] is None)
    if verb not in FIELDS or gaps:
        raise gr.Error(f"fill in: {', '.join(gaps)}" if gaps else "choose what to do", title="Not yet", duration=8)
    given = {name: value for name, value in body.items() if value is not None}
    return given if verb == "reload" else {**given, **({} if revision is None else {"revision": revision})}


def _value(name: str, value: Any) -> Any:
    if name == "pinned":
        return {_YES: True, _NO: False}.get(value)
    return value if value not in ("", 0, None) or name == "percent" else None


def _inputs() -> dict[str, Any]:
    first = FIELDS["add"]
    return {
        "reference": gr.Textbox(label="Reference", info="name@version", elem_id="act-reference"),
        "task": gr.Textbox(label="Task", info="its name", elem_id="act-task", visible="task" in first),
        "version": gr.Textbox(label="Version", info="for everybody; empty: as it is", visible="version" in first),
        "percent": gr.Number(
            5, label="Percent of the callers", elem_id="act-percent", minimum=0, maximum=100, visible="percent" in first
        ),
        "pinned": gr.Dropdown([_LEAVE, _YES, _NO], value=_LEAVE, label="Pinned", info="it stays in memory"),
        "items_per_second": gr.Number(None, label="Items a second", info="quota; empty: as it is", minimum=0),
        "tokens_per_second": gr.Number(None, label="Tokens a second", info="quota; empty: as it is", minimum=0),
    }


async def _looked(context: ConsoleContext, request: gr.Request) -> list[Any]:
    """What the catalogue says now; where it may not be read, why."""
    try:
        state = await context.asker(request).get(ROUTE)
    except SparsehubError as error:
        why = f"<p>The catalogue is for admin keys, on an endpoint that follows one: {escape(str(error))}</p>"
        return [why, [], None]
    trouble = f" It cannot be followed: {escape(state['error'])}" if state["error"] else ""
    draining = f", {state['draining']} versions drain" if state["draining"] else ""
    said = f"<p><b>Revision {state['revision']}</b> of <code>{escape(state['where'])}</code>{draining}.{trouble}</p>"
    names = sorted({*state["tasks"], *state["refused"]})
    rows = [_row(name, state["tasks"].get(name), state["refused"].get(name, "")) for name in names]
    return [said, rows, state["revision"]]


def _row(name: str, entry: dict[str, Any] | None, refused: str) -> list[Any]:
    if entry is None:
        return [name, *[""] * 7, refused]
    canary = entry["canary"]
    return [
        name,
        entry["stable"]["version"],
        canary["version"] if canary else "",
        f"{entry['canary_percent']:g}%" if canary else "",
        _YES if entry["pinned"] else _NO,
        entry["items_per_second"] or "",
        entry["tokens_per_second"] or "",
        ", ".join(target["version"] for target in entry["before"][::-1][:5]),
        refused,
    ]
