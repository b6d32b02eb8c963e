"""One request, many tasks: each answers, fails and is counted as if it had been asked alone."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from serving.auth import Authenticator, Key, KeyRing
from serving.auth.keys import PREDICT, new_secret
from sparsehub.delta import Delta
from sparsehub.files import sha256_bytes
from sparsehub.hub import open_hub

TEXTS = ["the quick fox", "who wrote the book about the river", "the quick fox"]
SECRETS = {name: new_secret() for name in ("all", "some")}
PATTERNS = {"all": ("*",), "some": ("thre*", "upper-*", "backbone")}
RING = KeyRing(tuple(Key(name, sha256_bytes(SECRETS[name].encode()), PREDICT, PATTERNS[name]) for name in SECRETS))


def key(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {SECRETS[name]}"}


@pytest.fixture(scope="module")
def served(new_server: Callable[..., Any], tiny_tasks: Any) -> Iterator[Any]:
    """The tasks of the suite, two that change the last layer only, one that changes nothing but its head."""
    with new_server(start=True, access=Authenticator(RING)) as server:
        yield with_upper_tasks(server, tiny_tasks)


def with_upper_tasks(server: Any, tiny_tasks: Any) -> Any:
    """The server, which serves two tasks more that change the last layer only, and one that changes its head only."""
    for seed, (name, kept) in enumerate((("upper-a", ".layer.1."), ("upper-b", ".layer.1."), ("upper-none", "-"))):
        package = tiny_tasks.read(name, labels=2 + seed, seed=30 + seed)
        parts = {key: part for key, part in package.delta.parameters.items() if kept in key}
        server.engine.add(dataclasses.replace(package, delta=Delta(parts, "add", "float32")))
    return server


def ask(server: Any, path: str, who: str = "all", **body: Any) -> Any:
    return server.client.post(path, json=body, headers=key(who))


@pytest.mark.parametrize("path", ["/v1/classify", "/classify"])
def test_a_list_answers_as_each_task_alone_does(served: Any, path: str) -> None:
    models = ["three", "upper-a", "upper-b", "upper-none", "seven@1.0.0", "three+seven*0.5", "words", "upper-a"]
    response = ask(served, path, model=models, input=TEXTS)
    assert response.status_code == 200, response.text
    found = response.json()
    assert found["model"] == models and found["object"] == "list" and "x-sparsehub-digest" not in response.headers
    assert [part["model"] for part in found["data"]] == models
    for index, (model, part) in enumerate(zip(models, found["data"], strict=True)):
        alone = ask(served, path, model=model, input=TEXTS).json()
        assert part["index"] == index and part["object"] == "task_answers"
        for name in ("task", "version", "digest", "labels", "usage"):
            assert part[name] == alone[name], (model, name)
        assert_close(part["data"], alone["data"])


def assert_close(found: Any, expected: Any) -> None:
    """Equal, numbers within 1e-5."""
    if isinstance(expected, float):
        assert found == pytest.approx(expected, abs=1e-5)
    elif isinstance(expected, dict | list):
        assert len(found) == len(expected)
        for place in expected if isinstance(expected, dict) else range(len(expected)):
            assert_close(found[place], expected[place])
    else:
        assert found == expected


def test_tokens_are_counted_once_where_they_run_once(served: Any) -> None:
    alone = ask(served, "/v1/classify", model="three", input=TEXTS).json()["usage"]["prompt_tokens"]
    for models, times in (
        (["upper-a", "upper-b", "upper-none"], 1),
        (["upper-a", "three", "seven"], 3),  # these two change everything, and share nothing
    ):
        found = ask(served, "/v1/classify", model=models, input=TEXTS).json()
        assert found["usage"]["prompt_tokens"] == found["usage"]["total_tokens"] == times * alone
        assert [part["usage"]["prompt_tokens"] for part in found["data"]] == [alone] * len(models)


def test_each_task_fails_alone(served: Any) -> None:
    found = ask(served, "/v1/classify", model=["three", "nobody", "rating", "pair"], input=TEXTS[:1]).json()["data"]
    assert [part.get("error", {}).get("code") for part in found] == [
        None,
        "UnknownTaskError",
        "RequestError",  # it gives a number
        "RequestError",  # it reads two texts
    ]
    assert [part["index"] for part in found] == [0, 1, 2, 3] and found[1]["model"] == "nobody"
    assert found[0]["data"][0]["label"]
    whole = ask(served, "/v1/classify", model=["nobody", "rating"], input="the fox")
    assert whole.status_code == 404 and whole.json()["error"]["code"] == "UnknownTaskError"


def test_numbers_and_vectors_of_several_tasks(served: Any) -> None:
    scores = ask(served, "/v1/score", model=["rating", "three"], input=TEXTS).json()["data"]
    alone = ask(served, "/v1/score", model="rating", input=TEXTS).json()
    assert_close(scores[0]["data"], alone["data"])
    assert "labels" not in scores[0] and "gives labels" in scores[1]["error"]["message"]
    models = ["three", "backbone", "upper-a"]
    vectors = ask(served, "/v1/embeddings", model=models, input=TEXTS).json()["data"]
    for model, part in zip(models, vectors, strict=True):
        assert_close(part["data"], ask(served, "/v1/embeddings", model=model, input=TEXTS).json()["data"])
    assert "task" not in vectors[1] and vectors[0]["task"] == "three@1.0.0"


def test_a_list_with_a_task_of_others_is_refused_whole_and_names_nothing(served: Any) -> None:
    for others in ("seven", "not-served", "three+seven*0.5"):
        refused = ask(served, "/v1/classify", "some", model=["three", others], input="the fox")
        assert refused.status_code == 403 and refused.json()["error"]["code"] == "ForbiddenError"
        assert not any(name in refused.text for name in ("three", "seven", "not-served"))
    allowed = ask(served, "/v1/classify", "some", model=["three", "upper-nobody"], input="the fox").json()["data"]
    assert allowed[0]["data"] and allowed[1]["error"]["message"] == "unknown task 'upper-nobody'"


def test_a_pattern_means_the_callers_own_tasks(served: Any) -> None:
    def names(who: str, pattern: str) -> list[str]:
        response = ask(served, "/v1/classify", who, model=pattern, input="the fox")
        assert response.json()["model"] == pattern
        return [part["model"] for part in response.json()["data"]]

    assert names("all", "upper-*") == names("some", "upper-*") == ["upper-a", "upper-b", "upper-none"]
    assert names("some", "*") == ["three", "upper-a", "upper-b", "upper-none"]
    assert {"seven", "three", "rating"} < set(names("all", "*")) and names("all", "*ree") == ["three"]
    for pattern in ("seven*", "nothing-*"):  # whether there is such a task is not for this key
        missing = ask(served, "/v1/classify", "some", model=pattern, input="the fox")
        assert missing.status_code == 404 and missing.json()["error"]["message"] == (
            f"no task of the caller's is called {pattern!r}"
        )


@pytest.mark.parametrize("model", [[], ["three", ""], [["three"]], [1], ["three"] * 1001], ids=str)
def test_what_is_no_list_of_tasks_is_refused(served: Any, model: Any) -> None:
    refused = ask(served, "/v1/classify", model=model, input="the fox")
    assert refused.status_code == 400 and refused.json()["error"]["param"].startswith("model")


def test_rows_of_all_tasks_count(served: Any, new_server: Callable[..., Any]) -> None:
    with new_server(start=True, max_items=5) as small:
        many = small.post("/v1/classify", model=["three", "seven"], input=TEXTS)
        assert many.status_code == 400 and "too many inputs" in many.json()["error"]["message"]
        assert small.post("/v1/classify", model=["three", "seven"], input=TEXTS[:2]).status_code == 200


def test_rates_quotas_canaries_metrics_and_logs_are_those_of_each_task(
    new_server: Callable[..., Any], suite: Any, tmp_path: Any, caplog: pytest.LogCaptureFixture, tiny_tasks: Any
) -> None:
    hub, catalog, entries = tmp_path / "hub", tmp_path / "catalog.json", {}
    for name in ("three", "seven"):
        found = open_hub(hub).publish(suite[name])
        entries[name] = {"stable": {"version": found.version, "digest": found.digest}}
    canary = open_hub(hub).publish(tiny_tasks.write("three", labels=3, version="1.1.0", seed=8))
    entries["three"] |= {"canary": {"version": "1.1.0", "digest": canary.digest}, "canary_percent": 100}
    entries["seven"]["items_per_second"] = 2
    catalog.write_text(json.dumps({"revision": 1, "tasks": entries}))
    with new_server(start=True, catalog=str(catalog), hub=str(hub)) as server:
        with caplog.at_level(logging.INFO, logger="sparsehub.requests"):
            first = server.post("/v1/classify", model="*", input=TEXTS[:2]).json()["data"]
        assert [(part["model"], part["task"]) for part in first] == [
            ("seven", "seven@1.0.0"),
            ("three", "three@1.1.0"),
        ]
        second = server.post("/v1/classify", model=["three", "seven"], input=TEXTS[:2]).json()["data"]
        assert second[0]["data"] and second[1]["error"]["code"] == "RateLimitError"
        line = json.loads(next(r.message for r in caplog.records if r.name == "sparsehub.requests"))
        assert line["tasks"] == ["seven@1.0.0", "three@1.1.0"] and line["items"] == 4 and line["task"] == ""
        states = {state["id"]: state for state in server.client.get("/v1/tasks").json()["data"]}
        assert [states["three@1.1.0"][name] for name in ("requests", "items", "failed")] == [2, 4, 0]
        assert [states["seven@1.0.0"][name] for name in ("requests", "items", "failed")] == [2, 2, 1]
        text = server.client.get("/metrics").text
        assert 'sparsehub_task_requests_total{status="429",task="seven",version="1.0.0"} 1.0' in text
        assert 'sparsehub_task_requests_total{status="200",task="three",version="1.1.0"} 2.0' in text


def test_a_keys_rate_is_charged_what_runs(served: Any) -> None:
    caller = served.access.identify(key("all")["Authorization"], None, None)
    taken: list[float] = []
    object.__setattr__(caller, "tokens", SimpleNamespace(take=lambda tokens, _: taken.append(tokens)))
    found = ask(served, "/v1/classify", model=["upper-a", "upper-b"], input=TEXTS).json()
    object.__setattr__(caller, "tokens", None)
    assert taken == [found["usage"]["prompt_tokens"]]
