"""Every tab, wide and on a phone, light and dark: nothing sticks out, and axe-core finds no serious fault.

With CONSOLE_PICTURES=FOLDER it leaves a picture of each for people to look at.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sparsehub.cli.app import app
from tests.support.console_browser import WIDTHS, Visit, axe_core, faults

pytestmark = pytest.mark.slow
PACKAGES = Path(__file__).parents[3] / "examples" / "support" / "packages"
LOOKS = [(width, scheme) for width in WIDTHS for scheme in ("light", "dark")]


def opened(width: str, scheme: str) -> dict[str, Any]:
    """Options of a browser's window."""
    wide, high = WIDTHS[width]
    return {"viewport": {"width": wide, "height": high}, "color_scheme": scheme, "has_touch": width == "phone"}


def ask(it: Visit) -> None:
    it.choose("#try-task", "three@1.0.0")
    it.page.fill("#try-text-0 textarea", "the quick brown fox")
    it.page.click("#try-ask")
    it.answer("try")


def ask_several(it: Visit) -> None:
    it.choose("#try-more", "tagged@1.0.0")
    it.choose("#try-more", "pair@1.0.0")
    it.page.keyboard.press("Escape")
    it.page.click("#try-ask")
    it.page.locator("#try-several .answer").nth(2).wait_for()
    it.page.locator("#try-copy button").first.click()
    it.page.locator("#try-python", has_text="requests").wait_for()


def compare(it: Visit) -> None:
    it.choose("#compare-first", "three@1.0.0")
    it.choose("#compare-second", "tagged@1.0.0")
    it.page.fill("#compare-text-0 textarea", "the quick brown fox")
    it.page.click("#compare-ask")
    it.answer("left")


def live(it: Visit) -> None:
    it.page.locator("#chart-throughput canvas, #chart-throughput svg.marks").first.wait_for()
    it.page.wait_for_timeout(2_500)


def package(it: Visit) -> None:
    it.page.locator("#inside-heat img, #inside-heat p").first.wait_for()
    it.choose("#inside-task", "three@1.0.0")
    it.page.locator("#inside-card h1", has_text="Three").wait_for()


def overlap(it: Visit) -> None:
    for task in ("three@1.0.0", "pair@1.0.0"):
        it.add("#overlap-tasks", task)
    it.page.keyboard.press("Tab")
    it.page.click("#overlap-ask")
    it.page.locator("#overlap-picture img").wait_for()


def catalogue(it: Visit) -> None:
    it.page.locator("#catalog", has_text="1.0.0").wait_for()
    it.page.locator("#act-now", has_text="for all callers").wait_for()
    it.page.click("#act-remove")
    it.page.locator("#act-confirm").wait_for()


# In turn, on one page: what a tab shows depends on what was asked before.
TABS: dict[str, tuple[str, Callable[[Visit], None]]] = {
    "tasks": ("Tasks", lambda it: it.page.locator("#tasks", has_text="pair@1.0.0").wait_for()),
    "live-quiet": ("Live", lambda it: it.page.locator("#no-traffic").wait_for()),
    "try": ("Try", ask),
    "try-several": ("Try", ask_several),
    "compare": ("Compare", compare),
    "live": ("Live", live),
    "package": ("Package", package),
    "overlap": ("Overlap", overlap),
    "catalogue": ("Catalogue", catalogue),
}


@pytest.mark.parametrize(("width", "scheme"), LOOKS)
def test_every_tab_fits_and_has_no_serious_fault(visit: Callable[..., Visit], width: str, scheme: str) -> None:
    axe = axe_core()
    it = visit("boss", **opened(width, scheme))
    found: dict[str, list[str]] = {}
    for name, (tab, act) in TABS.items():
        it.tab(tab)
        act(it)
        it.picture(f"{name}-{width}-{scheme}")
        found[name] = faults(it.page, axe) + it.sticking_out()
    assert not any(found.values()), "\n".join(f"{name}: {line}" for name, lines in found.items() for line in lines)


@pytest.mark.parametrize(("width", "scheme"), LOOKS)
def test_the_pages_around_it_too(browser: Any, served: Any, tmp_path: Path, width: str, scheme: str) -> None:
    """Sign-in, home, and the report that `sparsehub inspect --html` writes of a package."""
    axe = axe_core()
    it = Visit(browser, served, **opened(width, scheme), bypass_csp=True)
    home = f"http://127.0.0.1:{served.port}"
    for name, url in {
        "sign-in": f"{home}/console/",
        "home": f"{home}/",
        **{f"report-{task}": report(tmp_path, task) for task in ("topic", "urgency")},
    }.items():
        it.page.goto(url)
        it.picture(f"{name}-{width}-{scheme}")
        assert faults(it.page, axe) == [], name
        assert it.sticking_out() == [], name
    it.context.close()


def report(folder: Path, task: str) -> str:
    """Of a package of the demo, which is one that people see."""
    page = folder / f"{task}.html"
    done = CliRunner().invoke(app, ["inspect", str(PACKAGES / task), "--html", str(page)])
    assert done.exit_code == 0, done.output
    return page.as_uri()
