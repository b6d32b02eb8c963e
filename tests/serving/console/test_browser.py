"""The console in a real browser."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.console_browser import Visit
from tests.support.console_users import SECRETS

pytestmark = pytest.mark.slow
TEXT = "the quick brown fox"


def shares(server: Any, model: str) -> dict[str, str]:
    """What clients get, in whole percents as the page says it."""
    key = {"authorization": f"Bearer {SECRETS['boss']}"}
    answer = server.client.post("/v1/classify", json={"model": model, "input": TEXT}, headers=key).json()
    probs = answer["data"][0]["probs"]
    return {label: f"{share * 100:.0f}%" for label, share in zip(answer["labels"], probs, strict=True)}


def bars(text: str) -> dict[str, str]:
    words = text.split()
    return {label: share for label, share in itertools.pairwise(words) if share.endswith("%")}


def test_tasks_are_shown_tried_and_compared(visit: Callable[..., Visit], served: Any) -> None:
    it = visit("boss")
    assert it.page.locator("#header").inner_text().count("boss") == 1
    assert all(word in it.page.locator("#tasks").inner_text() for word in ("pair@1.0.0", "device", "468", "stable"))
    it.tab("Try")
    assert it.page.locator("#try-task input").input_value().endswith("@1.0.0"), "one to begin with"
    it.choose("#try-task", "three@1.0.0")
    it.page.fill("#try-text-0 textarea", TEXT)
    it.page.click("#try-ask")
    assert bars(it.answer("try")) == shares(served, "three@1.0.0")
    it.choose("#try-task", "pair@1.0.0")
    it.page.locator("#try-text-1", has_text="hypothesis").wait_for()
    it.choose("#try-task", "tagged@1.0.0")
    it.page.locator("#try-text-1").wait_for(state="hidden")
    it.page.click("#try-ask")
    it.page.locator("#try-words", has_text="label").wait_for()
    it.tab("Compare")
    it.choose("#compare-first", "three@1.0.0")
    it.choose("#compare-second", "no-such")
    it.page.fill("#compare-text-0 textarea", TEXT)
    it.page.click("#compare-ask")
    it.page.locator("#right-answer", has_text="unknown task").wait_for()
    assert bars(it.answer("left")) == shares(served, "three@1.0.0")
    it.tab("Live")
    it.page.locator("#chart-throughput canvas, #chart-throughput svg.marks").first.wait_for()
    assert not it.page.locator("#no-traffic").is_visible()


def test_the_table_sorts_numbers_as_numbers_and_shows_them_as_people_read_them(visit: Callable[..., Visit]) -> None:
    it = visit("boss")
    header = it.page.locator("#tasks [role=columnheader]", has_text="entries")
    shown = it.column("entries")
    assert len(set(shown)) > 1
    header.locator(".cell-menu-button").click()
    it.page.get_by_role("menuitem", name="Sort ascending").click()
    upwards = it.column("entries")
    assert upwards == sorted(shown, key=lambda text: int(text.replace(",", "") or -1))
    assert it.column("where")[0].startswith(("device (cpu)", "host", "disk"))


def test_several_tasks_are_asked_at_once(visit: Callable[..., Visit], served: Any) -> None:
    it = visit("boss")
    it.tab("Live")
    it.page.locator("#no-traffic").wait_for()
    it.tab("Try")
    it.choose("#try-task", "three@1.0.0")
    it.choose("#try-more", "tagged@1.0.0")
    it.choose("#try-more", "pair@1.0.0")
    it.page.keyboard.press("Escape")
    it.page.fill("#try-text-0 textarea", TEXT)
    it.page.click("#try-ask")
    cards = it.page.locator("#try-several .answer")
    cards.nth(2).wait_for()
    assert cards.locator("h2").all_inner_texts() == ["three@1.0.0", "tagged@1.0.0", "pair@1.0.0"]
    assert bars(cards.nth(0).locator(".bars").inner_text()) == shares(served, "three@1.0.0")
    assert "it reads other texts" in cards.nth(2).inner_text()
    it.page.locator("#try-copy button").first.click()
    assert '["three@1.0.0", "tagged@1.0.0"]' in it.page.locator("#try-curl").inner_text()


def test_a_package_is_shown_and_its_card_does_nothing(visit: Callable[..., Visit]) -> None:
    it = visit("team")
    assert "tagged" not in it.page.locator("#tasks").inner_text()  # it is not this key's
    it.tab("Package")
    it.choose("#inside-task", "three@1.0.0")
    it.page.locator("#inside-card .card").wait_for()
    assert it.page.locator("#inside-heat img").evaluate("it => it.naturalWidth") > 300
    assert it.page.evaluate("window.hacked") is None
    assert it.page.locator("#inside-card script, #inside-card [onerror]").count() == 0
    assert it.page.locator("#inside-card img").count() == 0, "its picture of the density is the one above"
    it.tab("Overlap")
    for task in ("three@1.0.0", "pair@1.0.0"):
        it.add("#overlap-tasks", task)
    it.page.keyboard.press("Tab")  # closes the list, which lies over the button
    it.page.click("#overlap-ask")
    assert it.page.locator("#overlap-picture img").evaluate("it => it.naturalWidth") > 300


def test_only_forms_that_a_key_can_use_are_there(visit: Callable[..., Visit]) -> None:
    for name, tabs in (("team", {"Try": True, "Catalogue": False}), ("watcher", {"Try": False, "Catalogue": False})):
        it = visit(name)
        it.page.get_by_role("tab", name="Live").wait_for()
        for tab, there in tabs.items():
            it.page.get_by_role("tab", name=tab).wait_for(state="visible" if there else "hidden")


def test_an_admin_act_asks_first_says_what_it_will_do_and_is_done(visit: Callable[..., Visit], served: Any) -> None:
    boss = visit("boss")
    boss.tab("Catalogue")
    boss.page.locator("#catalog").get_by_text("three", exact=True).first.click()
    boss.page.locator("#act-now", has_text="three: 1.0.0 for all callers").wait_for()
    assert boss.page.locator("#act-version input").input_value() == "2.0.0"
    boss.page.locator(
        "#act-effect", has_text="5% of the callers of three get three@2.0.0, 95% stay with 1.0.0"
    ).wait_for()
    boss.page.click("#act-canary")
    boss.page.locator("#trial-confirm", has_text="5% of the callers").wait_for()
    assert served.reconciler.served["three"].canary is None, "nobody has said yes"
    boss.page.click("#trial-yes")
    boss.page.locator("#catalog", has_text="2.0.0").wait_for()
    assert served.reconciler.served["three"].canary.version == "2.0.0"
    boss.page.locator("#catalog-said", has_text="Revision 2").wait_for()
    boss.page.locator("#act-promote", has_text="Promote 2.0.0").wait_for()
    boss.page.click("#act-roll")
    boss.page.locator("#act-confirm", has_text="The canary 2.0.0 of three ends").wait_for()
    boss.page.click("#act-yes")
    boss.page.locator("#catalog-said", has_text="Revision 3").wait_for()
    assert served.reconciler.served["three"].canary is None
    boss.page.click("#sign-out")
    boss.page.locator("#key").wait_for()


def test_what_is_refused_is_said_beside_the_field(visit: Callable[..., Visit]) -> None:
    boss = visit("boss")
    boss.tab("Catalogue")
    boss.page.locator("#add-task button").first.click()
    boss.page.click("#add-do")
    boss.page.locator("#add-error [role=alert]", has_text="fill in: reference").wait_for()
    boss.page.fill("#add-reference input, #add-reference textarea", "threes")
    boss.page.click("#add-do")
    boss.page.click("#add-yes")
    boss.page.locator("#add-error [role=alert]", has_text="threes").wait_for()
