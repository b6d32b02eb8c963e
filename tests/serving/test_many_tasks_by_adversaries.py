"""Lists and patterns of tasks from somebody who means no good: each is answered rightly, or refused with the reason,
and costs no more than a bound."""

from __future__ import annotations

import difflib
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from serving.auth import Authenticator
from serving.request import many_tasks
from serving.request.task_lists import MOST_COMPOSED
from sparsehub.engine import Task
from sparsehub.hub import open_hub
from tests.serving.test_many_tasks import RING, TEXTS, ask, assert_close, key, with_upper_tasks
from tests.serving.test_overload import send_raw

LISTS = ["/v1/classify", "/v1/score", "/v1/embeddings"]


@pytest.fixture(scope="module")
def served(new_server: Callable[..., Any], tiny_tasks: Any) -> Iterator[Any]:
    with new_server(start=True, access=Authenticator(RING)) as server:
        server.engine.add(tiny_tasks.read("vectors", "embedding"))
        yield with_upper_tasks(server, tiny_tasks)


def message(response: Any, status: int = 400) -> str:
    assert response.status_code == status, response.text
    found: str = response.json()["error"]["message"]
    return found


# answered


def test_a_task_that_stands_in_the_list_again_and_again_answers_each_time(served: Any) -> None:
    digest = served.engine.tasks.find("three").digest
    models = ["three", "three", "three@1.0.0", f"three@{digest}", "three"]
    found = ask(served, "/v1/classify", model=models, input=TEXTS).json()["data"]
    assert [part["model"] for part in found] == models and {part["digest"] for part in found} == {digest}
    for part in found[1:]:
        assert_close(part["data"], found[0]["data"])


def test_as_many_tasks_and_rows_as_there_may_be(served: Any) -> None:
    found = ask(served, "/v1/classify", model=["upper-a", "upper-b"] * 500, input="the fox").json()["data"]
    assert len(found) == 1000 and all(part["data"] for part in found)


def test_tasks_of_every_kind_in_one_list(served: Any) -> None:
    models = ["three", "rating", "words", "several", "choice", "pair", "vectors", "backbone"]
    found = ask(served, "/v1/classify", model=models, input="the fox").json()["data"]
    why = [part["error"]["message"] if "error" in part else "" for part in found]
    assert [bool(text) for text in why] == [False, True, False, False, True, True, True, True]
    assert "post to /v1/score" in why[1] and "expected: an object with text, choice1" in why[4]
    assert "a list of two strings" in why[5] and "post to /v1/embeddings" in why[6]
    assert why[7].startswith("the plain backbone has no head; found: backbone; expected: a task; to do: ")
    scores = ask(served, "/v1/score", model=models, input="the fox").json()["data"]
    assert [("error" in part) for part in scores] == [True, False, *[True] * 6]
    vectors = ask(served, "/v1/embeddings", model=models, input="the fox").json()["data"]
    assert not any("error" in part for part in vectors)


@pytest.mark.parametrize("model", ["backbone", "tiny/bert"])
def test_the_backbone_alone_has_no_head_either(served: Any, model: str) -> None:
    text = message(ask(served, "/v1/classify", model=model, input="the fox"))
    assert text.startswith("the plain backbone has no head") and "/v1/embeddings" in text


def test_versions_digests_and_channels_that_are_not_served_fail_alone(served: Any) -> None:
    models = ["three", "three@9.9.9", f"three@sha256:{'0' * 64}", "three@production", "three@", "@1.0.0", "upper-a*-0"]
    found = ask(served, "/v1/classify", model=models, input="the fox").json()["data"]
    assert [part.get("error", {}).get("code", "") for part in found] == [
        "",
        *["UnknownTaskError"] * 3,
        "",  # as of a task alone: no version is said
        "UnknownTaskError",
        "",
    ]


def test_the_pattern_of_everything_means_no_more_than_the_callers_own(served: Any) -> None:
    for pattern in ("*", "**", "*-*", "*" * 300):
        found = ask(served, "/v1/classify", "some", model=pattern, input="the fox").json()["data"]
        assert {part["model"] for part in found} <= {"three", "upper-a", "upper-b", "upper-none"}
    assert "backbone" not in [part["model"] for part in found], "which is no task"


# refused


@pytest.mark.parametrize("path", LISTS)
@pytest.mark.parametrize(
    ("model", "says"),
    [
        (
            [f"t{number}" for number in range(10_000)],
            "found: 10000 names; expected: 1 to 1000 names",
        ),
        (["three", "support-*"], "a list holds a pattern; found: 'support-*'; expected: names of tasks; to do: "),
        (["three", "*"], "a list holds a pattern"),
        (["three", "+"], "not a composition; found: '+'"),
        (["three", "three*"], "a list holds a pattern"),
        (["three", "three*0.5x"], "not a composition; found: 'three*0.5x'; expected: name, name+name or name+name*0.5"),
        (["three", "three*1e999"], "not a composition"),
        (["three", "three+" * 8 + "three"], "too many tasks in one composition; found: 9"),
        (["three", *(f"three+seven*0.{n}" for n in range(1, 66))], f"found: 65; expected: at most {MOST_COMPOSED}"),
        ([], "`model` is no list of tasks; found: 0 names"),
        (["three", ""], "name 1 of the list is no task's; found: ''; expected: a text of 1 to 300 characters"),
        (["three", "x" * 301], "name 1 of the list is no task's; found: 'xxx"),
        (["three", None], "name 1 of the list is no task's; found: None"),
        (["three", True], "found: True; expected: a text"),
        (["three", ["seven"]], "found: ['seven']; expected: a text"),
        ({"three": 1}, "model"),
        (["three", "\ud800"], "name 1 of the list is no task's; found: '"),
        ("*ü", "not a composition"),
        ("*?", "not a composition"),
        ("[a-z]*", "not a composition"),
    ],
    ids=lambda value: str(value)[:30].encode("ascii", "backslashreplace").decode(),
)
def test_what_is_no_list_says_why(served: Any, path: str, model: Any, says: str) -> None:
    body = {"model": model, "input": "the fox"}
    refused = served.client.post(
        path, content=json.dumps(body), headers={**key("all"), "content-type": "application/json"}
    )
    assert says in message(refused), refused.text


def test_names_of_other_scripts_are_names_that_nobody_has(served: Any) -> None:
    models = ["three", "Three", "drei·", "三", "three\u202e", "three\0", " three", "../three", "<b>", "s3://hub/three"]
    found = ask(served, "/v1/classify", model=models, input="the fox").json()["data"]
    assert [part.get("error", {}).get("code") for part in found] == [None, *["UnknownTaskError"] * 9]
    assert [part["model"] for part in found] == models


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/rerank", {"query": "a", "documents": ["b"]}),
        ("/v1/completions", {"prompt": "a"}),
        ("/v1/completions", {"prompt": "a", "stream": True}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}], "stream": True}),
    ],
)
@pytest.mark.parametrize("model", [["three", "seven"], ["three"], [], "upper-*"])
def test_what_one_task_answers_is_asked_of_one(served: Any, path: str, body: Any, model: Any) -> None:
    refused = ask(served, path, model=model, **body)
    assert message(refused).startswith("this route asks one task; found: ") and "/v1/score" in refused.text
    assert refused.json()["error"]["param"] == "model"


@pytest.mark.parametrize("path", LISTS)
def test_several_tasks_are_not_streamed(served: Any, path: str) -> None:
    refused = ask(served, path, model=["three", "seven"], input="the fox", stream=True)
    assert refused.status_code == 400 and "stream" in refused.json()["error"]["param"]


@pytest.mark.parametrize("empty", [[], "", ["", "the fox"], "  "])
@pytest.mark.parametrize("path", LISTS[::2])
def test_inputs_that_are_none_fail_all_tasks(served: Any, path: str, empty: Any) -> None:
    assert "empty" in message(ask(served, path, model=["three", "upper-a"], input=empty))


# bounded


def registered(server: Any, tiny_tasks: Any, names: list[str], gate: threading.Event | None = None) -> None:
    """Tasks whose packages are read when they are asked, and not before the gate is open."""
    package = tiny_tasks.read("gated", seed=70)

    def load() -> Any:
        if gate is not None:
            gate.wait(30)
        return package

    for name in names:
        digest = f"sha256:{hash(name) & (2**256 - 1):064x}"
        server.engine.register(Task(name, "1.0.0", digest, load))


def test_too_many_rows_and_none_are_refused_before_a_package_is_read(
    new_server: Callable[..., Any], tiny_tasks: Any
) -> None:
    with new_server(start=True, max_items=100) as server:
        registered(server, tiny_tasks, names := [f"far{number}" for number in range(51)])
        before = server.engine.usage.loads
        for path, body in (
            ("/v1/classify", {"model": names, "input": TEXTS[:2]}),
            ("/v1/embeddings", {"model": "far*", "input": TEXTS[:2]}),
            ("/v1/score", {"model": names, "input": TEXTS[:2]}),
        ):
            refused = server.client.post(path, json=body)
            assert "found: 2 for each of 51 tasks; expected: at most 100 in all" in message(refused)
            assert "the input is empty" in message(server.client.post(path, json={**body, "input": []}))
        assert server.engine.usage.loads == before


def test_a_pattern_that_fits_thousands_is_refused(new_server: Callable[..., Any], tiny_tasks: Any) -> None:
    with new_server(start=False) as server:
        registered(server, tiny_tasks, [f"far{number}" for number in range(1001)])
        assert message(server.post("/v1/classify", model="far*", input="the fox")) == (
            "too many tasks are called 'far*'; found: 1001; expected: at most 1000; to do: send a narrower pattern"
        )


@pytest.mark.parametrize("catalogue", [False, True])
def test_similar_names_are_looked_for_a_few_times(
    new_server: Callable[..., Any],
    suite: Any,
    tmp_path: Any,
    monkeypatch: pytest.MonkeyPatch,
    catalogue: bool,
) -> None:
    """To look for one among thousands takes as long as many answers."""
    settings = {}
    if catalogue:
        found = open_hub(tmp_path / "hub").publish(suite["three"])
        entry = {"stable": {"version": found.version, "digest": found.digest}}
        (tmp_path / "catalog.json").write_text(json.dumps({"revision": 1, "tasks": {"three": entry}}))
        settings = {"catalog": str(tmp_path / "catalog.json"), "hub": str(tmp_path / "hub")}
    looked, sound = [], difflib.get_close_matches

    def counted(word: str, *more: Any, **options: Any) -> Any:
        looked.append(word)
        return sound(word, *more, **options)

    monkeypatch.setattr(difflib, "get_close_matches", counted)
    with new_server(start=True, **settings) as server:
        models = [*(f"thre{number}" for number in range(300)), *(f"three@{number}" for number in range(300)), "three"]
        found = server.post("/v1/classify", model=models, input="the fox").json()["data"]
        assert len(looked) == many_tasks.MOST_HINTS
        composed = server.post("/v1/classify", model=[*models[:20], "three*0.5+three"], input="the fox").json()["data"]
    assert found[-1]["data"] and {part["error"]["code"] for part in found[:-1]} == {"UnknownTaskError"}
    assert "did you mean 'three'" in found[0]["error"]["message"] and composed[-1]["data"]


def test_a_silent_hub_holds_a_list_no_longer_than_a_task(new_server: Callable[..., Any], tiny_tasks: Any) -> None:
    gate = threading.Event()
    with new_server(start=True, timeout=0.5) as server:
        names = [f"far{number}" for number in range(20)]
        registered(server, tiny_tasks, names, gate)
        found = server.post("/v1/classify", model=[*names, "three"], input="the fox").json()["data"]
        gate.set()
    assert found[-1]["data"]
    for part in found[:-1]:
        assert part["error"]["code"] == "CancelledError" and "was not loaded in time" in part["error"]["message"]
    assert "0.5 s for all tasks" in found[-2]["error"]["message"]


def test_the_rows_of_a_client_that_leaves_are_dropped_of_all_tasks(halted: Callable[..., Any]) -> None:
    server = halted()
    leaver = send_raw(server, ["three", "seven", "nobody"], "the fox", "a dog")
    server.until(lambda: server.engine.waiting == 4)
    leaver.close()
    server.until(lambda: 'status="499"' in server.client.get("/metrics").text)
    assert not server.engine.step() and server.engine.waiting == 0
    server.until(lambda: all(status.references == 0 for status in server.engine.status()))
    text = server.client.get("/metrics").text
    for task in ("three", "seven"):
        assert f'sparsehub_task_requests_total{{status="499",task="{task}",version="1.0.0"}} 1.0' in text


# counted


def test_quotas_and_rates_are_taken_for_every_time_that_a_task_is_named(
    new_server: Callable[..., Any], suite: Any, tmp_path: Any
) -> None:
    hub, catalog = tmp_path / "hub", tmp_path / "catalog.json"
    found = open_hub(hub).publish(suite["seven"])
    entry = {"stable": {"version": found.version, "digest": found.digest}, "items_per_second": 2}
    catalog.write_text(json.dumps({"revision": 1, "tasks": {"seven": entry}}))
    with new_server(start=True, catalog=str(catalog), hub=str(hub)) as server:
        parts = server.post("/v1/classify", model=["seven", "seven@1.0.0", "seven"], input=TEXTS[:2]).json()
        assert [part.get("error", {}).get("code") for part in parts["data"]] == [None, *["RateLimitError"] * 2]
        assert parts["usage"] == parts["data"][0]["usage"], "what was refused did not run"


def test_a_request_that_is_refused_as_a_whole_counts_for_each_task(new_server: Callable[..., Any]) -> None:
    with new_server(start=True, max_tokens=4) as server:
        refused = server.post("/v1/classify", model=["three", "seven"], input=TEXTS[1])
        assert "too many tokens in one request" in message(refused)
        states = {state["name"]: state for state in server.client.get("/v1/tasks").json()["data"]}
        assert [(states[name]["requests"], states[name]["failed"]) for name in ("three", "seven")] == [(1, 1)] * 2


def test_tokens_are_the_same_wherever_they_are_told(served: Any, caplog: pytest.LogCaptureFixture) -> None:
    """`usage`, the log and the key's metrics count once what ran once; a task's own metrics count it alone."""

    def counts() -> dict[str, float]:
        lines = served.metrics.text(served.engine).splitlines()
        told = (line.rpartition(" ") for line in lines if line.startswith("sparsehub_"))
        return {name: float(value) for name, _, value in told}

    models, mine = ["upper-a", "upper-b", "upper-none", "three"], 'sparsehub_key_tokens_total{key="all"}'
    before = counts()
    with caplog.at_level("INFO", logger="sparsehub.requests"):
        body = ask(served, "/v1/classify", model=models, input=TEXTS).json()
        served.until(lambda: [r for r in caplog.records if '"tasks"' in r.message])  # counted, then logged
    alone = body["data"][0]["usage"]["prompt_tokens"]
    assert body["usage"]["prompt_tokens"] == 2 * alone, "three changes every layer"
    line = next(json.loads(r.message) for r in caplog.records if '"tasks"' in r.message)
    grown = {name: value - before.get(name, 0.0) for name, value in counts().items()}
    assert line["tokens"] == grown[mine] == 2 * alone
    assert [grown[f'sparsehub_task_tokens_total{{task="{name}"}}'] for name in models] == [alone] * 4
    assert line["items"] == grown['sparsehub_key_rows_total{key="all"}'] == 12
