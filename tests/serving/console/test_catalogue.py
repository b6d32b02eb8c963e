"""The tab Catalogue: what an act will do is said before it is done, and nobody does more than the key may."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest

from serving.console.catalog_acts import CatalogAct, canary_text, entry_text, question_of, quotas_of, row_of_entry
from serving.console.confirmed import done, refused
from serving.console.context import ConsoleContext
from serving.console.package_views import Packages
from sparsehub.errors import UsageError
from tests.support.console_users import signed_in

ENTRY = {
    "stable": {"version": "1.0.0"},
    "canary": None,
    "canary_percent": 0,
    "pinned": True,
    "items_per_second": 5,
    "tokens_per_second": None,
    "before": [{"version": "0.9.0"}],
}
TRIED = {**ENTRY, "canary": {"version": "2.0.0"}, "canary_percent": 5}


@pytest.mark.parametrize(
    ("entry", "version", "percent", "says"),
    [
        (ENTRY, None, 5, "Choose a version"),
        (ENTRY, "1.0.0", 5, "is what everybody gets already"),
        (ENTRY, "2.0.0", 0, "Nobody who asks for <b>topic</b> gets topic@2.0.0"),
        (ENTRY, "2.0.0", 12, "<b>12%</b> of the callers of <b>topic</b> get topic@2.0.0, 88% stay with 1.0.0"),
        (ENTRY, "2.0.0", 100, "Everybody who asks for <b>topic</b> gets topic@2.0.0; 1.0.0 stays the stable version"),
        (TRIED, "3.0.0", 5, "It takes the place of the canary 2.0.0."),
    ],
)
def test_a_share_says_what_it_will_do(entry: dict[str, Any], version: str | None, percent: float, says: str) -> None:
    assert says in canary_text("topic", entry, version, percent)


@pytest.mark.parametrize(
    ("verb", "entry", "values", "says"),
    [
        ("promote", TRIED, {}, "Everybody who asks for <b>topic</b> gets 2.0.0 from now on, in place of 1.0.0."),
        ("rollback", TRIED, {}, "The canary 2.0.0 of <b>topic</b> ends: everybody gets 1.0.0."),
        ("rollback", ENTRY, {}, "gets 0.9.0 again, in place of 1.0.0."),
        ("remove", ENTRY, {}, "<b>topic</b> is served no longer."),
        ("canary", ENTRY, {"reference": "topic@2.0.0", "percent": 5}, "<b>5%</b> of the callers"),
        ("set", ENTRY, {"version": "3.0.0"}, "gets 3.0.0 at once, in place of 1.0.0."),
        ("set", ENTRY, {"pinned": "yes"}, "stays in memory"),
        ("set", ENTRY, {"pinned": "no"}, "may leave memory"),
        ("set", ENTRY, quotas_of("topic", 7, None, 3), "7 items a second and no limit of tokens"),
    ],
)
def test_every_act_says_what_it_will_do(verb: str, entry: dict[str, Any], values: dict[str, Any], says: str) -> None:
    assert says in question_of(verb, "topic", entry, values)
    assert "<img" not in question_of(verb, "<img>", entry, values)


def test_an_empty_limit_is_taken_away() -> None:
    body = quotas_of("topic", 0, 9, 3)
    assert body == {"task": "topic", "items_per_second": None, "tokens_per_second": 9, "revision": 3}


def test_a_task_is_told_in_a_row_and_in_words() -> None:
    assert row_of_entry("topic", TRIED, "") == ["topic", "1.0.0", "2.0.0", "5%", "yes", 5, "", "0.9.0", ""]
    assert row_of_entry("topic", None, "damaged")[-1] == "damaged"
    assert "<b>2.0.0</b> for 5% of them, pinned" in entry_text("topic", TRIED)


def test_an_error_is_text_beside_the_field() -> None:
    *_, shown = refused(UsageError("no version", found="<script>"))
    assert 'role="alert"' in shown.value and "&lt;script&gt;" in shown.value and shown.visible
    assert "fill in" in refused(gr.Error("fill in: task"))[-1].value


def visitor(served: Any, name: str) -> tuple[ConsoleContext, Any]:
    """The console as a signed-in browser's event reaches it."""
    headers = [(b"host", b"localhost"), (b"cookie", signed_in(served, name)["cookie"].encode())]
    ends = {"client": ("127.0.0.1", 1), "server": ("127.0.0.1", served.port)}
    scope = {"path": "/console/gradio_api/queue/join", "headers": headers, "scheme": "http", "root_path": "", **ends}
    context = ConsoleContext(served.gate, served.access, Packages(served.engine), "tiny/bert", "cpu")
    return context, SimpleNamespace(request=SimpleNamespace(scope=scope))


@pytest.mark.parametrize("name", ["team", "watcher"])
def test_an_act_without_an_admins_key_is_refused_and_changes_nothing(served: Any, name: str) -> None:
    context, request = visitor(served, name)
    act = CatalogAct("canary", {"reference": "three@2.0.0", "percent": 5}, "")
    *_, error = asyncio.run(done(context, request, act))
    assert "may not do that" in error.value
    assert served.reconciler.served["three"].canary is None
    assert context.url(request) == "http://localhost"


def test_an_act_of_an_admin_is_done_and_one_from_an_older_look_is_not(served: Any) -> None:
    context, request = visitor(served, "boss")
    for body, said in (({"task": "pair", "revision": 99}, "has changed meanwhile"), ({"task": "pair"}, "")):
        *_, error = asyncio.run(done(context, request, CatalogAct("set", {**body, "pinned": True}, "")))
        assert said in error.value and bool(said) == error.visible
    assert served.reconciler.served["pair"].pinned
    asyncio.run(done(context, request, CatalogAct("set", {"task": "pair", "pinned": False}, "")))
    assert not asyncio.run(done(context, request, None))[-1].visible
