"""Changes of the catalogue: what each takes, what it will do in words, and what the catalogue says now."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr

from sparsehub.task_ref import parse_reference

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
# Each with its width in pixels.
COLUMNS = {
    "task": 170,
    "stable": 100,
    "canary": 100,
    "share": 90,
    "pinned": 95,
    "items/s": 100,
    "tokens/s": 110,
    "before": 170,
    "refused": 279,
}
YES, NO = "yes", "no"


@dataclass(frozen=True)
class CatalogAct:
    """A change that waits for its user to say yes."""

    verb: str
    body: Mapping[str, Any]
    question: str  # HTML: what it will do


def body_of(verb: str, values: Mapping[str, Any], revision: int | None) -> dict[str, Any]:
    """What the route gets: what the verb takes, as far as it is filled in. Raises `gr.Error` for a gap."""
    body = {name: _value(name, values.get(name)) for name in FIELDS.get(verb, ())}
    gaps = sorted(name for name in NEEDED & body.keys() if body[name] is None)
    if verb not in FIELDS or gaps:
        raise gr.Error(f"fill in: {', '.join(gaps)}" if gaps else "choose what to do", title="Not yet", duration=8)
    given = {name: value for name, value in body.items() if value is not None}
    return given if verb == "reload" else {**given, **({} if revision is None else {"revision": revision})}


def _value(name: str, value: Any) -> Any:
    if name == "pinned":
        return {YES: True, NO: False}.get(value)
    return value if value not in ("", 0, None) or name == "percent" else None


def quotas_of(task: str, items: float | None, tokens: float | None, revision: int | None) -> dict[str, Any]:
    """The body that sets both quotas of a task; an empty one is taken away."""
    quotas = {"items_per_second": items or None, "tokens_per_second": tokens or None}
    return {**body_of("set", {"task": task}, revision), **quotas}


def canary_text(name: str, entry: Mapping[str, Any], version: str | None, percent: float) -> str:
    """What a canary at this share will do, as HTML."""
    stable = entry["stable"]["version"]
    if not version:
        return "<p>Choose a version to try.</p>"
    if version == stable:
        return f"<p>{escape(version)} is what everybody gets already: choose another version.</p>"
    new, old, task = escape(f"{name}@{version}"), escape(stable), escape(name)
    if percent <= 0:
        shares = f"Nobody who asks for <b>{task}</b> gets {new}; who asks for it by its version does."
    elif percent >= 100:
        shares = f"Everybody who asks for <b>{task}</b> gets {new}; {old} stays the stable version."
    else:
        shares = (
            f"<b>{percent:g}%</b> of the callers of <b>{task}</b> get {new}, {100 - percent:g}% stay with {old}. "
            "A caller stays where it is; a larger share only adds callers."
        )
    running = entry["canary"]["version"] if entry["canary"] else None
    other = f" It takes the place of the canary {escape(running)}." if running not in (None, version) else ""
    return f"<p>{shares}{other}</p>"


def question_of(verb: str, name: str, entry: Mapping[str, Any], values: Mapping[str, Any]) -> str:
    """What a verb will do to a task, as the page asks it before it does it; HTML."""
    task, stable = escape(name), escape(entry["stable"]["version"])
    canary = escape(entry["canary"]["version"]) if entry["canary"] else ""
    if verb == "canary":
        return canary_text(name, entry, parse_reference(values["reference"]).pin or "", values["percent"])
    if verb == "promote":
        return f"<p>Everybody who asks for <b>{task}</b> gets {canary} from now on, in place of {stable}.</p>"
    if verb == "rollback" and canary:
        return f"<p>The canary {canary} of <b>{task}</b> ends: everybody gets {stable}.</p>"
    if verb == "rollback":
        before = escape(entry["before"][-1]["version"]) if entry["before"] else "the version before"
        return f"<p>Everybody who asks for <b>{task}</b> gets {before} again, in place of {stable}.</p>"
    if verb == "remove":
        return f"<p><b>{task}</b> is served no longer. Requests that have begun are answered.</p>"
    return _options_text(task, stable, values)


def _options_text(task: str, stable: str, values: Mapping[str, Any]) -> str:
    if version := values.get("version"):
        return (
            f"<p>Everybody who asks for <b>{task}</b> gets {escape(version)} at once, in place of {stable}. A canary "
            "would try it on some first.</p>"
        )
    if (pinned := values.get("pinned")) is not None:
        stays = "stays in memory" if pinned == YES else "may leave memory where others need the room"
        return f"<p><b>{task}</b> {stays}.</p>"
    limits = [
        f"{values[name]:g} {unit} a second" if values.get(name) else f"no limit of {unit}"
        for name, unit in (("items_per_second", "items"), ("tokens_per_second", "tokens"))
    ]
    return f"<p>All callers of <b>{task}</b> together, on each replica: {' and '.join(limits)}.</p>"


def entry_text(name: str, entry: Mapping[str, Any]) -> str:
    """What the catalogue says of a task, as HTML."""
    canary = entry["canary"]
    tried = f", <b>{escape(canary['version'])}</b> for {entry['canary_percent']:g}% of them" if canary else ""
    pinned = ", pinned" if entry["pinned"] else ""
    return f"<p>{escape(name)}: <b>{escape(entry['stable']['version'])}</b> for all callers{tried}{pinned}.</p>"


def row_of_entry(name: str, entry: Mapping[str, Any] | None, refused: str) -> list[Any]:
    """A task as a row of the table; of one that was never served, only why."""
    if entry is None:
        return [name, *[""] * 7, refused]
    canary = entry["canary"]
    return [
        name,
        entry["stable"]["version"],
        canary["version"] if canary else "",
        f"{entry['canary_percent']:g}%" if canary else "",
        YES if entry["pinned"] else NO,
        entry["items_per_second"] or "",
        entry["tokens_per_second"] or "",
        ", ".join(target["version"] for target in entry["before"][::-1][:5]),
        refused,
    ]
