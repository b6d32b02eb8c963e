"""The console in a real browser."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.console_users import SECRETS

pytestmark = pytest.mark.slow
CHROMIUM = shutil.which("chromium")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
TEXT = "the quick brown fox"


class Visit:
    """A browser on the console, and all that it asked for."""

    def __init__(self, browser: Any, server: Any, **options: Any):
        self.server, self.context = server, browser.new_context(viewport={"width": 1280, "height": 900}, **options)
        self.page = self.context.new_page()
        self.page.set_default_timeout(60_000)
        self.asked: list[str] = []
        self.broken: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("pageerror", lambda error: self.broken.append(str(error)))

    def sign_in(self, name: str) -> None:
        self.page.goto(f"http://127.0.0.1:{self.server.port}/console/")
        self.page.fill("#key", SECRETS[name])
        self.page.click("button")
        self.page.locator("#tasks", has_text="three@1.0.0").wait_for()

    def tab(self, name: str) -> None:
        self.page.get_by_role("tab", name=name).click()

    def choose(self, where: str, task: str) -> None:
        box = self.page.locator(f"{where} input").first
        box.fill(task)
        box.press("Enter")

    def answer(self, name: str) -> str:
        """The labels of an answer with their shares."""
        self.page.locator(f"#{name}-answer .who").wait_for()
        return self.page.locator(f"#{name}-bars").inner_text()

    def picture(self, name: str) -> None:
        """For people to look at, where somebody asks for it."""
        if folder := os.environ.get("CONSOLE_PICTURES"):
            self.page.screenshot(path=f"{folder}/{name}.png", full_page=True)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no chromium here: apt-get install -y --no-install-recommends chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser: Any, served: Any) -> Iterator[Callable[..., Visit]]:
    visits: list[Visit] = []

    def new(name: str, **options: Any) -> Visit:
        visits.append(Visit(browser, served, **options))
        visits[-1].sign_in(name)
        return visits[-1]

    yield new
    for it in visits:
        assert not it.broken, it.broken
        home = f"http://127.0.0.1:{served.port}/"
        assert [url for url in it.asked if not url.startswith((home, "data:", "blob:"))] == []
        it.context.close()


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
    it.picture("tasks")
    it.tab("Try")
    it.choose("#try-task", "three@1.0.0")
    it.page.fill("#try-text-0 textarea", TEXT)
    it.page.click("#try-ask")
    assert bars(it.answer("try")) == shares(served, "three@1.0.0")
    it.picture("try")
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
    it.picture("live")


def test_a_package_is_shown_and_its_card_does_nothing(visit: Callable[..., Visit]) -> None:
    it = visit("team")
    assert "tagged" not in it.page.locator("#tasks").inner_text()  # it is not this key's
    it.tab("Package")
    it.choose("#inside-task", "three@1.0.0")
    it.page.locator("#inside-card .card").wait_for()
    assert it.page.locator("#inside-heat img").evaluate("it => it.naturalWidth") > 300
    assert it.page.evaluate("window.hacked") is None
    assert it.page.locator("#inside-card script, #inside-card [onerror]").count() == 0
    it.picture("package")
    it.tab("Overlap")
    for task in ("three@1.0.0", "pair@1.0.0"):
        it.choose("#overlap-tasks", task)
    it.page.keyboard.press("Tab")  # closes the list, which lies over the button
    it.page.click("#overlap-ask")
    assert it.page.locator("#overlap-picture img").evaluate("it => it.naturalWidth") > 300
    it.picture("overlap")


def test_an_admin_act_is_refused_without_the_key_and_done_with_it(visit: Callable[..., Visit], served: Any) -> None:
    def canary(it: Visit) -> None:
        it.tab("Catalogue")
        it.page.locator("#act label", has_text="canary").click()
        it.page.locator("#act-percent").wait_for()
        it.page.fill("#act-reference textarea, #act-reference input", "three@2.0.0")
        it.page.click("#act-do")

    team = visit("team")
    canary(team)
    team.page.locator(".toast-body", has_text="may not do that").wait_for()
    assert served.reconciler.served["three"].canary is None
    boss = visit("boss", color_scheme="dark")
    canary(boss)
    boss.page.locator("#catalog", has_text="2.0.0").wait_for()
    assert served.reconciler.served["three"].canary.version == "2.0.0"
    boss.page.locator("#catalog-said", has_text="Revision 2").wait_for()
    boss.picture("catalogue-dark")
    boss.page.set_viewport_size({"width": 390, "height": 800})
    boss.picture("catalogue-narrow")
    boss.page.click("#sign-out")
    boss.page.locator("#key").wait_for()
