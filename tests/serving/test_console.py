"""The console: what its door lets in, whom it answers, and the page itself in a real browser."""

from __future__ import annotations

import dataclasses
import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from serving.access import ADMIN, PREDICT, WATCH, Access, Key, KeyRing
from serving.access.keys import new_secret
from serving.catalog import Catalog, Entry, Target
from serving.console import history
from serving.console.cards import card_html
from serving.console.history import History
from serving.console.packages import Packages
from serving.console.tab_catalog import body_of
from serving.console.table import ago
from sparsehub.files import canonical_json, sha256_bytes
from sparsehub.hub import open_hub
from sparsehub.package import read_package, write_package
from sparsehub.package.pictures import draw_pictures

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
SECRETS = {name: new_secret() for name in ("boss", "team", "watcher")}
ROLES = {"boss": (ADMIN, ("*",)), "team": (PREDICT, ("three", "pair")), "watcher": (WATCH, ("*",))}
RING = KeyRing(tuple(Key(name, sha256_bytes(secret.encode()), *ROLES[name]) for name, secret in SECRETS.items()))
TEXT = "the quick brown fox"
CARD = """---
license: x
---
# Three <script>window.hacked = 1</script>

![pixel](http://203.0.113.9/p.png) ![own](density.png) [bad](javascript:window.hacked=2) [good](https://example.org/)
[beside](/v1/tasks)

<img src=x onerror="window.hacked = 3">

| a |
|---|
| <b>1</b> |
"""


@pytest.fixture(scope="module")
def hub(tiny_tasks: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Target]]:
    """Four tasks, one in two versions, one with a card that means harm."""
    folder, targets = tmp_path_factory.mktemp("hub"), {}
    made = {
        "pair": tiny_tasks.write("pair", fields=("premise", "hypothesis"), seed=4),
        "tagged": tiny_tasks.write("tagged", "token-classification", seed=6),
        "three2": tiny_tasks.write("three", labels=4, version="2.0.0", seed=9),
    }
    sound, made["three"] = read_package(tiny_tasks.write("three", seed=5)), folder / "harmful"
    pictures = draw_pictures(sound.manifest, None)
    draft = dataclasses.replace(sound.manifest, files={})
    write_package(made["three"], draft, sound.delta, sound.head, CARD, pictures)
    for name, package in made.items():
        found = open_hub(folder / "hub").publish(package)
        targets[name] = Target(found.version or "", found.digest)
    return folder / "hub", targets


@pytest.fixture(scope="module")
def served(hub: Any, new_server: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """An endpoint with keys and a catalogue, and the console."""
    folder, targets = hub
    where = tmp_path_factory.mktemp("catalog")
    entries = {name: Entry(target) for name, target in targets.items() if name != "three2"}
    (where / "catalog.json").write_bytes(Catalog(1, entries).to_bytes())
    before, os.environ["SPARSEHUB_CACHE"] = os.environ.get("SPARSEHUB_CACHE"), str(where / "cache")
    with new_server(
        start=True, access=Access(RING), catalog=str(where / "catalog.json"), hub=str(folder), console=True
    ) as server:
        yield server
    os.environ.pop("SPARSEHUB_CACHE")
    if before is not None:
        os.environ["SPARSEHUB_CACHE"] = before


def signed_in(server: Any, name: str) -> dict[str, str]:
    """The header that a browser sends which has signed in."""
    answer = server.client.post("/console/sign-in", data={"key": SECRETS[name]}, follow_redirects=False)
    server.client.cookies.clear()
    assert answer.status_code == 303, answer.text
    cookie = answer.headers["set-cookie"]
    assert all(part in cookie for part in ("HttpOnly", "SameSite=strict", "Path=/console")), cookie
    assert "expires" not in cookie.lower() and "max-age" not in cookie.lower()
    return {"cookie": cookie.partition(";")[0]}


# who is let in


@pytest.mark.parametrize(
    "path", ["/console/", "/console/config", "/console/assets/x.js", "/console/gradio_api/queue/data"]
)
def test_nothing_of_it_is_given_without_a_key(served: Any, path: str) -> None:
    for headers in ({}, {"cookie": "sparsehub_console=c2stbm8="}, {"cookie": "sparsehub_console=%%"}):
        answer = served.client.get(path, headers=headers)
        assert answer.status_code == 401
        assert ("<form" in answer.text) == (path == "/console/")


def test_a_wrong_key_does_not_sign_in_and_says_so(served: Any) -> None:
    answer = served.client.post("/console/sign-in", data={"key": "sk-<b>"})
    assert answer.status_code == 401 and "not known here" in answer.text
    assert "set-cookie" not in answer.headers and "sk-" not in answer.text


@pytest.mark.parametrize("name", list(SECRETS))
def test_every_role_may_look_and_its_cookie_opens_the_console_alone(served: Any, name: str) -> None:
    headers = signed_in(served, name)
    page = served.client.get("/console/", headers=headers)
    assert page.status_code == 200 and "gradio" in page.text
    assert "frame-ancestors 'none'" in page.headers["content-security-policy"]
    for path in ("/v1/tasks", "/v1/admin/catalog", "/metrics", "/v1/models"):
        assert served.client.get(path, headers=headers).status_code == 401


def test_signing_out_takes_the_cookie_away(served: Any) -> None:
    answer = served.client.post("/console/sign-out", headers=signed_in(served, "team"), follow_redirects=False)
    assert answer.status_code == 303 and "Max-Age=0" in answer.headers["set-cookie"]


def test_without_the_setting_there_is_no_console(new_server: Callable[..., Any]) -> None:
    with new_server(start=False, access=Access(RING)) as server:
        key = {"authorization": f"Bearer {SECRETS['boss']}"}
        assert server.client.get("/console/", headers=key).status_code == 404
        assert "<form" not in server.client.get("/console/").text


# what is let in


@pytest.mark.parametrize(
    "path",
    [
        "gradio_api/file=/etc/passwd",
        "gradio_api/file=http://127.0.0.1:1/",
        "gradio_api/file/etc/passwd",
        "gradio_api/proxy=http://127.0.0.1:1/",
        "gradio_api/info",
        "gradio_api/runs",
        "gradio_api/openapi.json",
        "gradio_api/upload_progress?upload_id=1",
        "monitoring",
        "svelte/x.js",
        "assets/..%2f..%2f..%2f..%2f..%2f..%2fetc/passwd",
        "static/../../../../../../etc/passwd",
        "assets//etc/passwd",
        "token",
        "docs",
    ],
)
def test_no_route_of_gradio_reaches_a_file_or_another_server(served: Any, path: str) -> None:
    answer = served.client.get(f"/console/{path}", headers=signed_in(served, "boss"))
    assert 400 <= answer.status_code < 500 and "root:" not in answer.text


@pytest.mark.parametrize(
    "path", ["gradio_api/upload", "gradio_api/call/look", "gradio_api/run/look", "login", "vibe-edit"]
)
def test_nothing_is_uploaded_and_no_event_is_called_as_an_api(served: Any, path: str) -> None:
    answer = served.client.post(f"/console/{path}", headers=signed_in(served, "boss"), files={"files": b"x"})
    assert answer.status_code == 404


@pytest.mark.parametrize(
    "data",
    [
        [{"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}],
        [[{"path": "/x", "url": "http://127.0.0.1:1/", "meta": {"_type": "gradio.FileData"}}]],
        {"a": 1},
        None,
    ],
)
def test_an_event_that_names_a_file_is_refused(served: Any, data: Any) -> None:
    event = {"data": data, "fn_index": 0, "session_hash": "abc"}
    answer = served.client.post("/console/gradio_api/queue/join", headers=signed_in(served, "boss"), json=event)
    assert answer.status_code == 400 and "the console" in answer.json()["error"]["message"]


@pytest.mark.parametrize("headers", [{"sec-fetch-site": "cross-site"}, {"origin": "http://evil.example"}])
def test_another_sites_page_cannot_act_for_its_visitor(served: Any, headers: dict[str, str]) -> None:
    event = {"data": [], "fn_index": 0, "session_hash": "abc"}
    headers = {**signed_in(served, "boss"), **headers}
    for path in ("sign-in", "sign-out", "gradio_api/queue/join"):
        assert served.client.post(f"/console/{path}", headers=headers, json=event).status_code == 403


def test_a_card_can_do_nothing() -> None:
    drawn = b"\x89PNG\r\n\x1a\nrest"
    html = card_html({"README.md": CARD.encode(), "density.png": drawn})
    for harm in ("<script", "<img src=x", "http://203", 'href="javascript', "<b>", "license", 'href="/v1'):
        assert harm not in html
    assert html.count("<img") == 1 and 'src="data:image/png;base64,iVBORw0KGgpyZXN0"' in html
    assert 'rel="noopener noreferrer nofollow"' in html and "[picture: pixel]" in html
    assert "density.png" not in card_html({"README.md": CARD.encode(), "density.png": b"<svg onload=x>"})
    assert "no card" in card_html({})


def test_packages_are_read_once_and_compared_within_bounds(served: Any) -> None:
    packages = Packages(served.engine)
    digests = [status.task.digest for status in served.engine.status()]
    assert packages.overlap(digests[:2]) is packages.overlap(digests[:2])
    for wrong in (digests[:1], digests[:1] * 2, [str(i) for i in range(9)]):
        with pytest.raises(Exception, match="2 to 8"):
            packages.overlap(wrong)


def test_the_history_counts_what_came_between_two_looks_and_is_bounded() -> None:
    start, past = datetime(2026, 1, 1), History()
    task = {
        "id": "a@1",
        "digest": "d",
        "where": "device",
        "bytes": 1 << 20,
        "requests": 5,
        "p50_ms": 2.0,
        "p99_ms": 3.0,
    }
    for second in range(history.LOOKS + 50):
        past.look([{**task, "requests": 5 + 4 * second}], start + timedelta(seconds=2 * second))
    throughput = past.series(history.THROUGHPUT)
    assert {name: value for _, name, value in throughput} == {history.ALL: 2.0, "a@1": 2.0}
    assert len(throughput) == 2 * history.LOOKS
    past.look([task], start + timedelta(seconds=9999))  # another version, or a restart: never below nothing
    assert past.series(history.THROUGHPUT)[-1][2] == 0.0
    assert past.series(history.MEMORY)[-1][2] == 1.0
    assert [ago(100, now) for now in (101, 147, 400, 8_000)] == ["just now", "40 s ago", "5 min ago", "2 h ago"]


def test_an_act_is_sent_with_what_it_takes_and_the_revision_that_was_seen() -> None:
    values = {"reference": "a@1", "task": "", "percent": 0, "version": "", "pinned": "yes", "items_per_second": 0}
    values["tokens_per_second"] = 7
    assert body_of("add", values, 3) == {"reference": "a@1", "pinned": True, "tokens_per_second": 7, "revision": 3}
    assert body_of("canary", values, None) == {"reference": "a@1", "percent": 0}
    assert body_of("reload", values, 3) == {}
    with pytest.raises(Exception, match="fill in: task"):
        body_of("promote", values, 3)


def test_a_missing_extra_is_named_with_its_install_line(tmp_path: Path) -> None:
    hide = "import sys; sys.modules['gradio'] = None; from sparsehub.cli import main; main()"
    command = [sys.executable, "-c", hide, "serve", "--backbone", "x", "--hub", str(tmp_path), "--console"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0 and "pip install 'sparsehub[console]'" in done.stderr


# in the browser


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
    assert served.keeper.served["three"].canary is None
    boss = visit("boss", color_scheme="dark")
    canary(boss)
    boss.page.locator("#catalog", has_text="2.0.0").wait_for()
    assert served.keeper.served["three"].canary.version == "2.0.0"
    boss.page.locator("#catalog-said", has_text="Revision 2").wait_for()
    boss.picture("catalogue-dark")
    boss.page.set_viewport_size({"width": 390, "height": 800})
    boss.picture("catalogue-narrow")
    boss.page.click("#sign-out")
    boss.page.locator("#key").wait_for()


def test_a_key_that_is_taken_back_opens_nothing_more(served: Any) -> None:
    headers = signed_in(served, "watcher")
    rest = KeyRing(tuple(key for key in RING.keys if key.name != "watcher"))
    assert served.client.get("/console/config", headers=headers).status_code == 200
    served.access.reload(canonical_json(rest.to_json()))
    assert served.client.get("/console/config", headers=headers).status_code == 401
    assert "not known here" in served.client.get("/console/", headers=headers).text
    served.access.reload(canonical_json(RING.to_json()))
