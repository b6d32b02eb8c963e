"""Who may do what: every route with every kind of key; what leaks, what is limited, and what a key file may be."""

from __future__ import annotations

import itertools
import json
import logging
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.app import create_app
from serving.auth import ADMIN, PREDICT, WATCH, Authenticator, Key, KeyRing, parse_keys
from serving.auth.keys import new_secret
from serving.auth.rate_limit import TokenBucket
from sparsehub.errors import RateLimitError, UnauthenticatedError, UsageError
from sparsehub.files import canonical_json, sha256_bytes

SECRETS = {name: new_secret() for name in ("predict", "other", "watch", "admin", "some")}
TASKS = {"other": ("seven", "pair"), "some": ("thre*", "rating")}
ROLE_OF = {"watch": WATCH, "admin": ADMIN}
RING = KeyRing(
    tuple(
        Key(name, sha256_bytes(secret.encode()), ROLE_OF.get(name, PREDICT), TASKS.get(name, ("*",)))
        for name, secret in SECRETS.items()
    )
)
KINDS = ("none", "wrong", "predict", "other", "watch", "admin")
OPEN = dict.fromkeys(KINDS, 200)
LOOKS = {"none": 401, "wrong": 401, "predict": 200, "other": 200, "watch": 200, "admin": 200}
ASKS = {"none": 401, "wrong": 401, "predict": 200, "other": 403, "watch": 403, "admin": 200}
READS = {"none": 401, "wrong": 401, "predict": 403, "other": 403, "watch": 200, "admin": 200}
PAGES = {"none": 401, "wrong": 401, "predict": 200, "other": 200, "watch": 403, "admin": 200}
CHANGES = {"none": 401, "wrong": 401, "predict": 403, "other": 403, "watch": 403, "admin": 400}  # it has no catalogue
ACTS = ("add", "canary", "promote", "reload", "remove", "rollback", "set")
RANKED = {"model": "match", "query": "the fox", "documents": ["a dog"]}
VERSION = "/versions/{version}"
TENSORS = {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["the fox"]}]}
# Every route of the app has its line: with a body for the task that the key `other` is not for.
# None of these tasks generates text: whoever may ask is told so.
SPEAKS = {kind: 400 if status == 200 else status for kind, status in ASKS.items()}
ROUTES: dict[tuple[str, str], tuple[dict[str, int], Any]] = {
    ("GET", "/"): (OPEN, None),
    ("GET", "/healthz"): (OPEN, None),
    ("GET", "/readyz"): (OPEN, None),
    ("GET", "/metrics"): (READS, None),
    ("GET", "/openapi.json"): (LOOKS, None),
    ("GET", "/docs"): (PAGES, None),
    ("GET", "/docs/oauth2-redirect"): (PAGES, None),
    ("GET", "/v1/models"): (LOOKS, None),
    ("GET", "/v1/tasks"): (LOOKS, None),
    ("POST", "/v1/classify"): (ASKS, {"model": "three", "input": "the fox"}),
    ("POST", "/v1/score"): (ASKS, {"model": "rating", "input": "the fox"}),
    ("POST", "/v1/embeddings"): (ASKS, {"model": "three", "input": "the fox"}),
    ("POST", "/v1/completions"): (SPEAKS, {"model": "three", "prompt": "the fox"}),
    ("POST", "/v1/chat/completions"): (
        SPEAKS,
        {"model": "three", "messages": [{"role": "user", "content": "the fox"}]},
    ),
    ("POST", "/classify"): (ASKS, {"model": "three", "input": "the fox"}),
    ("POST", "/score"): (ASKS, {"model": "rating", "input": "the fox"}),
    **{("POST", path): (ASKS, RANKED) for path in ("/rerank", "/v1/rerank", "/v2/rerank")},
    ("GET", "/v1/models/{model}"): (LOOKS | {"other": 404}, None),
    ("GET", "/v2"): (LOOKS, None),
    ("GET", "/v2/health/live"): (OPEN, None),
    ("GET", "/v2/health/ready"): (OPEN, None),
    **{("GET", f"/v2/models/{{task}}{more}"): (ASKS, None) for more in ("", "/ready", VERSION, f"{VERSION}/ready")},
    **{("POST", f"/v2/models/{{task}}{more}/infer"): (ASKS, TENSORS) for more in ("", VERSION)},
    **{("GET", f"/v1/admin/catalog{more}"): (CHANGES, None) for more in ("", "/versions/{task}")},
    **{("POST", f"/v1/admin/catalog/{act}"): (CHANGES, {"task": "three"}) for act in ACTS},
}


def header(kind: str) -> dict[str, str]:
    if kind == "none":
        return {}
    return {"Authorization": f"Bearer {SECRETS.get(kind, 'sk-of-nobody')}"}


@pytest.fixture(scope="module")
def guarded(new_server: Callable[..., Any], tiny_tasks: Any) -> Iterator[Any]:
    with new_server(start=True, access=Authenticator(RING)) as server:
        server.engine.add(tiny_tasks.read("match", "regression", fields=("a", "b"), seed=9))
        yield server


def test_the_matrix_has_every_route() -> None:
    declared = {(method.upper(), path) for path, verbs in create_app().openapi()["paths"].items() for method in verbs}
    assert declared <= set(ROUTES), "a new route needs its line in the matrix"
    assert set(ROUTES) - declared <= {("GET", path) for path in ("/openapi.json", "/docs", "/docs/oauth2-redirect")}


@pytest.mark.parametrize(("route", "kind"), itertools.product(ROUTES, KINDS), ids=str)
def test_every_route_with_every_kind_of_key(guarded: Any, route: tuple[str, str], kind: str) -> None:
    method, path = route
    expected, body = ROUTES[route]
    path = path.format(task="three", version="1.0.0", model="three")
    response = guarded.client.request(method, path, json=body, headers=header(kind))
    assert response.status_code == expected[kind], response.text
    if response.status_code in (401, 403):
        error = response.json()["error"]
        assert error["type"] == {401: "authentication_error", 403: "permission_error"}[response.status_code]
        assert "fox" not in response.text
    if response.status_code == 401:
        assert response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("path", ["/v1", "/v1/nothing", "/v1/admin", "/v1/admin/anything", "//metrics"])
def test_where_nothing_is_nobody_learns_so_without_a_key(guarded: Any, path: str) -> None:
    url = f"http://127.0.0.1:{guarded.port}{path}"
    assert guarded.client.get(url).status_code == 401
    assert guarded.client.get(url, headers=header("admin")).status_code == 404


@pytest.mark.parametrize(
    "value",
    [
        "Bearer",
        "Basic abc",
        f"Basic {SECRETS['admin']}",
        SECRETS["admin"],
        f"Bearer {SECRETS['admin'][:-1]}",
        f"Bearer {SECRETS['admin']}x",
        f"Bearer {sha256_bytes(SECRETS['admin'].encode())}",
        "Bearer \xff\xfe",
    ],
    ids=["nothing", "basic", "key as basic", "bare key", "cut key", "longer key", "hash", "no text"],
)
def test_what_is_not_exactly_a_key_is_none(guarded: Any, value: str) -> None:
    assert guarded.client.get("/v1/models", headers={b"authorization": value.encode("latin-1")}).status_code == 401  # type: ignore[dict-item]


def test_a_key_sees_its_own_tasks_only(guarded: Any) -> None:
    def seen(kind: str) -> list[str]:
        return [model["id"] for model in guarded.client.get("/v1/models", headers=header(kind)).json()["data"]]

    assert seen("some") == ["three@1.0.0", "rating@1.0.0"]
    assert seen("other") == ["seven@1.0.0", "pair@1.0.0"]
    assert len(seen("predict")) == 9


@pytest.mark.parametrize(
    "model",
    ["seven", "seven@1.0.0", "three+seven*0.5", "seven+three", "backbone", "tiny/bert", "no-such", " seven", "seven "],
)
def test_another_tasks_name_is_403_whether_it_is_served_or_not(guarded: Any, model: str) -> None:
    plain = model in ("backbone", "tiny/bert")  # which only some routes take
    for path in ("/v1/embeddings",) if plain else ("/v1/embeddings", "/v1/score", "/v1/classify"):
        response = guarded.client.post(path, json={"model": model, "input": "a"}, headers=header("some"))
        assert response.status_code == 403, (path, response.text)
        assert "did you mean" not in response.text


def test_an_unknown_task_names_no_other_to_a_key_that_is_not_for_all(guarded: Any) -> None:
    body = {"model": "thres", "input": "a"}
    told = guarded.client.post("/v1/classify", json=body, headers=header("predict"))
    untold = guarded.client.post("/v1/classify", json=body, headers=header("some"))
    assert (told.status_code, untold.status_code) == (404, 404)
    assert "three" in told.json()["error"]["message"]
    assert untold.json()["error"]["message"] == "unknown task 'thres'"


@pytest.mark.parametrize(
    "model",
    ["/etc/passwd", "file:///etc/passwd", "../three", "hf://tiny/three", "s3://b/three", "three@2.0.0", "three@latest"],
)
def test_no_file_url_or_hub_can_be_reached_from_a_request(guarded: Any, suite: Any, model: str) -> None:
    for reference in (model, str(suite["three"]), f"three@sha256:{'0' * 64}"):
        response = guarded.client.post("/v1/classify", json={"model": reference, "input": "a"}, headers=header("admin"))
        assert response.status_code == 404, response.text


def test_cors_is_off(guarded: Any) -> None:
    response = guarded.client.options(
        "/v1/classify",
        headers={**header("predict"), "Origin": "http://x", "Access-Control-Request-Method": "POST"},
    )
    assert not [name for name in response.headers if name.startswith("access-control")]
    plain = guarded.client.post(
        "/v1/classify",
        content='{"model": "three", "input": "a"}',
        headers={**header("predict"), "content-type": "text/plain"},
    )
    assert plain.status_code == 400  # what a strange page could send without asking


def test_without_keys_only_this_machine_is_answered() -> None:
    access = Authenticator()
    for here in ("127.0.0.1", "::1", "127.8.8.8", "::ffff:127.0.0.1", None):
        assert access.identify(None, here, here).name == "anonymous"
    for client, server in (("10.0.0.7", "10.0.0.5"), ("127.0.0.1", "10.0.0.5"), ("10.0.0.7", "127.0.0.1"), ("x", None)):
        with pytest.raises(UnauthenticatedError, match="answers its own machine only"):
            access.identify(None, client, server)
    assert Authenticator(everybody=True).identify(None, "10.0.0.7", "10.0.0.5").name == "anonymous"
    assert ADMIN not in Authenticator(everybody=True).identify(None, None, None).may


def test_a_key_of_the_wrong_kind_is_not_counted_as_a_request_and_is_logged(
    guarded: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "sparsehub.requests"):
        given = guarded.client.get("/v1/models", headers={**header("watch"), "X-Request-Id": "ab-12"})
        refused = guarded.client.get("/v1/models", headers={"X-Request-Id": 'no"id'})
        asked = guarded.client.post(
            "/v1/classify", json={"model": "three", "input": ["a", "b"]}, headers=header("admin")
        )
    assert given.headers["x-request-id"] == "ab-12"
    assert len(refused.headers["x-request-id"]) == 32
    lines = [json.loads(record.getMessage()) for record in caplog.records if record.name == "sparsehub.requests"]
    assert [(line["key"], line["status"]) for line in lines] == [("watch", 200), ("anonymous", 401), ("admin", 200)]
    assert lines[2]["digest"] == asked.json()["digest"] and lines[2]["task"] == "three@1.0.0"
    assert lines[2]["items"] == 2 and lines[2]["tokens"] == asked.json()["usage"]["total_tokens"]
    assert not any(secret in record.getMessage() for secret in SECRETS.values() for record in caplog.records)


# limits


def test_a_body_that_is_too_large_is_413_whatever_it_announces(new_server: Callable[..., Any]) -> None:
    with new_server(start=True, body_kib=1) as server:
        large = server.client.post("/v1/classify", content=b"x" * 2000, headers={"content-type": "application/json"})
        chunked = server.client.post("/v1/classify", content=iter([b"x" * 600] * 5))
        assert (large.status_code, chunked.status_code) == (413, 413)
        assert large.json()["error"]["code"] == "BodyTooLargeError"
        assert server.post("/v1/classify", model="three", input="the fox").status_code == 200


def test_a_body_that_does_not_come_is_408(new_server: Callable[..., Any]) -> None:
    with new_server(start=True, timeout=0.3) as server, socket.create_connection(("127.0.0.1", server.port)) as slow:
        slow.sendall(b"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\n{")
        slow.settimeout(20)
        assert slow.recv(100).startswith(b"HTTP/1.1 408")


def test_too_many_tokens_are_400_and_nothing_is_queued(new_server: Callable[..., Any]) -> None:
    with new_server(start=False, max_tokens=10) as server:
        response = server.post("/v1/classify", model="three", input=["the fox"] * 4)
        assert response.status_code == 400 and "too many tokens" in response.json()["error"]["message"]
        assert server.engine.waiting == 0
        assert all(status.references == 0 for status in server.engine.status())


def test_deep_nesting_is_400(guarded: Any) -> None:
    content = b'{"model": "three", "input": ' + b"[" * 200_000 + b"]" * 200_000 + b"}"
    headers = {**header("predict"), "content-type": "application/json"}
    assert guarded.client.post("/v1/classify", content=content, headers=headers).status_code == 400


def test_rates_of_a_key_are_429_with_retry_after(new_server: Callable[..., Any]) -> None:
    slow, hungry = new_secret(), new_secret()
    ring = KeyRing(
        (
            Key("slow", sha256_bytes(slow.encode()), requests_per_second=0.01),
            Key("hungry", sha256_bytes(hungry.encode()), tokens_per_second=0.01),
        )
    )
    with new_server(start=True, access=Authenticator(ring)) as server:
        for secret, what in ((slow, "requests"), (hungry, "tokens")):
            headers = {"Authorization": f"Bearer {secret}"}
            answers = [
                server.client.post("/v1/classify", json={"model": "three", "input": "a"}, headers=headers)
                for _ in range(2)
            ]
            assert [answer.status_code for answer in answers] == [200, 429]
            assert int(answers[1].headers["retry-after"]) > 1
            error = answers[1].json()["error"]
            assert error["type"] == "rate_limit_error" and f"the rate of {what}" in error["message"]
            assert server.client.get("/v1/models", headers=headers).status_code == (429 if what == "requests" else 200)


@given(st.lists(st.tuples(st.floats(0, 3), st.integers(1, 50)), max_size=30), st.floats(0.1, 20))
def test_a_bucket_never_lets_more_pass_than_its_rate_and_one_request(
    steps: list[tuple[float, int]], rate: float
) -> None:
    now, passed, largest = 0.0, 0, 0
    bucket = TokenBucket(rate, clock=lambda: now)
    for wait, amount in steps:
        now += wait
        try:
            bucket.take(amount, "it")
        except RateLimitError as error:
            assert error.retry_after > 0
            now += error.retry_after * (1 + 1e-9) + 1e-9
            bucket.take(amount, "it")
        passed, largest = passed + amount, max(largest, amount)
        assert passed - largest <= max(rate, 1) + now * rate + 1e-6


# the key file


def test_a_key_file_comes_back_from_its_own_bytes() -> None:
    ring = KeyRing((Key("a", sha256_bytes(b"x"), ADMIN, ("t*",), 2.5, 10.0), Key("b", sha256_bytes(b"y"))))
    assert parse_keys(canonical_json(ring.to_json())) == ring


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}x",
        b'{"keys": [{"name": "a"}]}',
        b'{"keys": [{"name": "a", "sha256": "sk-plain"}]}',
        b'{"keys": [], "other": 1}',
        json.dumps({"keys": [{"name": "a", "sha256": sha256_bytes(b"x"), "role": "root"}]}).encode(),
        json.dumps({"keys": [{"name": "a b", "sha256": sha256_bytes(b"x")}]}).encode(),
        json.dumps({"keys": [{"name": "a", "sha256": sha256_bytes(b"x"), "requests_per_second": 0}]}).encode(),
        json.dumps({"keys": [{"name": n, "sha256": sha256_bytes(b"x")} for n in "ab"]}).encode(),
        json.dumps({"keys": [{"name": "a", "sha256": sha256_bytes(t.encode())} for t in "xy"]}).encode(),
    ],
)
def test_a_wrong_key_file_is_refused_and_the_keys_before_it_hold(content: bytes) -> None:
    access = Authenticator(RING)
    with pytest.raises(UsageError):
        access.reload(content)
    assert access.identify(f"Bearer {SECRETS['admin']}", "10.0.0.1", None).name == "admin"


def test_a_running_endpoint_follows_its_key_file(tmp_path: Path) -> None:
    from serving.settings import Settings
    from serving.startup import start_access

    def write(ring: KeyRing) -> None:
        (tmp_path / "keys.json").write_bytes(canonical_json(ring.to_json()))

    settings = Settings("tiny/bert", hub="hub", keys=str(tmp_path / "keys.json"))
    with pytest.raises(UsageError, match="the key file is gone"):
        start_access(settings)
    write(RING)
    access, follower = start_access(settings)
    assert follower is not None
    try:
        bearer = f"Bearer {SECRETS['other']}"
        known = access.identify(bearer, None, None)
        write(RING.without("admin"))
        follower.look()
        assert access.identify(bearer, None, None) is known  # its rates go on
        with pytest.raises(UnauthenticatedError):
            access.identify(f"Bearer {SECRETS['admin']}", None, None)
        (tmp_path / "keys.json").write_bytes(b"{")
        with pytest.raises(UsageError):
            follower.look()
        assert access.identify(bearer, None, None) is known
    finally:
        follower.stop()
