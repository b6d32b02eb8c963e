"""From a request to the tasks that it is placed by, and to what of its connection another process gets."""

from __future__ import annotations

import json

import pytest

from serving.auth.authenticator import needed_for
from serving.ray.routing import MOST_PLACED, carried, may_repeat, place_of, tasks_in, tasks_of


@pytest.mark.parametrize(
    ("model", "task"),
    [
        ("topic", "topic"),
        ("topic@1.2.0", "topic"),
        ("topic@sha256:" + "a" * 64, "topic"),
        ("topic+tone*0.5", "topic"),
        ("topic*0.5 + tone", "topic"),
        (7, ""),
        (None, ""),
    ],
)
def test_a_body_says_its_task(model: object, task: str) -> None:
    assert tasks_in("/v1/classify", json.dumps({"model": model, "input": "a"}).encode()) == [task][: len(task)]


@pytest.mark.parametrize(
    ("model", "tasks"),
    [
        (["topic", "urgency"], ["topic", "urgency"]),
        (["topic@1.0.0", "tone*0.5+topic", "topic"], ["topic", "tone"]),
        (["topic", 7, None, "", ["tone"], "+"], ["topic"]),
        ([], []),
        ("support-*", ["support-*"]),
        (["support-*"], ["support-*"]),
        (["topic", "support-*"], ["topic"]),  # which is refused where it is answered
        ("*" * 301, []),
        ([f"task{number}" for number in range(1000)], [f"task{number}" for number in range(MOST_PLACED)]),
    ],
)
def test_a_body_says_its_tasks(model: object, tasks: list[str]) -> None:
    assert tasks_in("/v1/classify", json.dumps({"model": model, "input": "a"}).encode()) == tasks


@pytest.mark.parametrize("body", [b"", b"{", b"[" * 100_000, b"\xff", b'"topic"', b'{"input": 1}'])
def test_a_body_that_says_none_is_placed_by_nothing(body: bytes) -> None:
    assert tasks_in("/v1/classify", body) == []


def test_a_path_says_its_task() -> None:
    for path in ("/v2/models/topic/infer", "/v2/models/topic/versions/1.0.0/infer", "/v1/models/topic@1.0.0"):
        assert tasks_in(path, b'{"model": "another"}') == ["topic"]


def test_a_path_says_its_tasks() -> None:
    for named, tasks in (
        ("topic, tone@1.0.0", ["topic", "tone"]),
        ("support-*", ["support-*"]),
        (",topic,,", ["topic"]),
        (",", []),
    ):
        assert tasks_in(f"/v2/models/{named}/infer", b"") == tasks


def test_the_same_tasks_have_one_place() -> None:
    assert place_of(["tone", "topic"]) == place_of(["topic", "tone"]) and place_of([]) == ""
    assert tasks_of(place_of(["topic", "tone"])) == ["tone", "topic"] and tasks_of("") == []


def test_what_changes_the_catalogue_is_not_repeated() -> None:
    repeated = [
        may_repeat({"method": method, "path": path})
        for method, path in (
            ("POST", "/v1/classify"),
            ("GET", "/v1/admin/catalog"),
            ("POST", "/v1/admin/catalog/add"),
        )
    ]
    assert repeated == [True, True, False]


def test_a_prefix_hides_no_route_from_the_gate() -> None:
    """An endpoint mounted at /models asks for an admin's key where one at / does."""
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/models/v1/admin/catalog/add",
        "root_path": "/models",
        "query_string": b"",
        "headers": [(b"host", b"inside")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
        "app": object(),
    }
    found = carried(scope)
    assert found["path"] == "/v1/admin/catalog/add" and "app" not in found
    assert needed_for(found["path"]) == frozenset({"admin"}) and not may_repeat(found)
    assert found["client"] == scope["client"] and found["headers"] == scope["headers"]
