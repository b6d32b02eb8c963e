"""A browser on the console: what it shows, what it asks for, and what axe-core says of it."""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.support.console_users import SECRETS

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
STILL = """() => !document.querySelector(".pending, .generating, .translucent")
    && document.getAnimations().every(it => it.playState !== "running"
        || it.effect.getComputedTiming().iterations === Infinity)"""
# What is wider than the window, and in nothing that scrolls: cut off, or the page scrolls.
STICKS_OUT = """() => [...document.querySelectorAll("body *")].filter(it => {
    const {right, width} = it.getBoundingClientRect();
    const scrolls = above => /auto|scroll/.test(getComputedStyle(above).overflowX);
    for (let above = it.parentElement; above; above = above.parentElement) if (scrolls(above)) return false;
    return width > 0 && right > innerWidth + 1 && it.checkVisibility({visibilityProperty: true});
}).map(it => `it sticks out: ${it.outerHTML.slice(0, 120)}`)"""
WIDTHS = {"wide": (1280, 900), "phone": (390, 844)}


class Visit:
    """A browser on the console, and all that it asked for."""

    def __init__(self, browser: Any, server: Any, **options: Any):
        options = {"viewport": {"width": 1280, "height": 900}, **options}
        self.server, self.context = server, browser.new_context(**options)
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

    def add(self, where: str, task: str) -> None:
        """Add a task to a list of several. On a busy machine what may be chosen comes late."""
        box = self.page.locator(f"{where} input").first
        box.fill(task)
        self.page.locator("[role=option]").filter(has_text=task).first.wait_for()
        box.press("Enter")
        self.page.locator(f"{where} .token").filter(has_text=task).first.wait_for()

    def answer(self, name: str) -> str:
        """The labels of an answer with their shares."""
        self.page.locator(f"#{name}-answer .who").wait_for()
        return str(self.page.locator(f"#{name}-bars").inner_text())

    def column(self, name: str) -> list[str]:
        """The cells of a column of the table of tasks, from top to bottom."""
        headers = [text.strip() for text in self.page.locator("#tasks [role=columnheader]").all_inner_texts()]
        place = next(i for i, text in enumerate(headers, 1) if text.startswith(name))
        cells = self.page.locator(f"#tasks [role=gridcell][aria-colindex='{place}']")
        return [text.strip() for text in cells.all_inner_texts()]

    def picture(self, name: str) -> None:
        """For people to look at, where somebody asks for it."""
        if folder := os.environ.get("CONSOLE_PICTURES"):
            self.page.screenshot(path=f"{folder}/{name}.png", full_page=True)

    def scrolls_sideways(self) -> bool:
        """Whether the page is wider than its window."""
        return bool(self.page.evaluate("document.documentElement.scrollWidth > window.innerWidth + 1"))

    def sticking_out(self) -> list[str]:
        """What is in the page and wider than its window, but for what scrolls by itself."""
        return list(self.page.evaluate(STICKS_OUT)) + (["it scrolls sideways"] if self.scrolls_sideways() else [])


def axe_core() -> str:
    """The text of axe-core, by its MPL-2.0 no part of this project: from AXE_CORE, npm's folder, or the package of
    Python that carries it."""
    stated, npm = os.environ.get("AXE_CORE"), Path("node_modules/axe-core/axe.min.js")
    spec = find_spec("axe_playwright_python")
    folders = spec.submodule_search_locations or () if spec else ()
    carried = [path for folder in folders for path in sorted(Path(folder).rglob("axe.min.js"))]
    for found in (Path(stated) if stated else npm, npm, *carried):
        if found.is_file():
            return found.read_text(encoding="utf-8")
    pytest.skip("no axe-core here: npm install axe-core, or AXE_CORE=/path/to/axe.min.js")


def faults(page: Any, axe: str) -> list[str]:
    """What axe-core calls serious or critical in a page, once nothing in it is faded or fades."""
    page.wait_for_function(STILL)
    page.evaluate(axe)
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{it['impact']} {it['id']}: {it['help']}: {node['html'][:200]} {' '.join(map(str, node['target']))[:200]}"
        for it in found["violations"]
        if it["impact"] in ("serious", "critical")
        for node in it["nodes"]
    ]
