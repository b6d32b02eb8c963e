"""The console: what its door lets in and whom it answers."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from serving.auth import Authenticator, KeyRing
from serving.console import history
from serving.console.cards import card_html
from serving.console.catalog_acts import body_of
from serving.console.context import shown
from serving.console.history import History
from serving.console.package_views import Packages
from serving.console.task_forms import answer_of, form_of
from serving.console.task_table import ago
from sparsehub.errors import RequestError
from sparsehub.files import canonical_json
from tests.support.console_users import CARD, RING, SECRETS, Asker, signed_in

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
    with new_server(start=False, access=Authenticator(RING)) as server:
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
    assert "<img" not in card_html({"README.md": CARD.encode(), "density.png": drawn}, {"density.png"})
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
        "items": 5,
        "failed": 0,
        "p50_ms": 2.0,
        "p99_ms": 3.0,
    }
    for second in range(history.LOOKS + 50):
        past.look(
            [{**task, "requests": 5 + 4 * second, "items": 5 + 4 * second}], start + timedelta(seconds=2 * second)
        )
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


def test_a_key_that_is_taken_back_opens_nothing_more(served: Any) -> None:
    headers = signed_in(served, "watcher")
    rest = KeyRing(tuple(key for key in RING.keys if key.name != "watcher"))
    assert served.client.get("/console/config", headers=headers).status_code == 200
    served.access.reload(canonical_json(rest.to_json()))
    assert served.client.get("/console/config", headers=headers).status_code == 401
    assert "not known here" in served.client.get("/console/", headers=headers).text
    served.access.reload(canonical_json(RING.to_json()))


def test_every_kind_has_a_form_and_an_answer(new_server: Callable[..., Any], tiny_tasks: Any) -> None:
    texts = {"choice": ("the fox", "a dog", "a film"), "pair": ("the fox", "a dog"), "vectors": ("the fox",) * 2}
    with new_server(start=True) as server:
        server.engine.add(tiny_tasks.read("vectors", "embedding", fields=("a", "b")))
        ask, shown = Asker(server.client), {}
        for task in server.engine.tasks.all():
            form = asyncio.run(form_of(ask, task.name))  # type: ignore[arg-type]
            exact = asyncio.run(form_of(ask, task.reference))  # type: ignore[arg-type]
            assert (exact.fields, exact.gives) == (form.fields, form.gives), "by its card as by its tensors"
            shown[task.name] = asyncio.run(answer_of(ask, form, texts.get(task.name, ("the fox",))))  # type: ignore[arg-type]
        assert all(f"answered by <b>{name}@1.0.0</b>" in answer.text for name, answer in shown.items())
        assert '<p class="number">1</p>' in shown["vectors"].text
        labels = server.post("/v1/classify", model="several", input="the fox").json()["data"][0]["labels"]
        assert list(shown["several"].probabilities or ()) == [f"label{i}" for i in range(4)]
        assert ", ".join(labels) in shown["several"].text


def test_an_error_that_cites_a_stranger_is_text() -> None:
    note = shown(RequestError("no label", found='<img src=x onerror="window.hacked = 4">'))
    assert "<" not in note.message and '&lt;img src=x onerror="window' in note.message
