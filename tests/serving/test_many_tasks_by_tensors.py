"""The Open Inference Protocol with several tasks in the path: each answers, fails and is counted as if asked alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from serving.auth import Authenticator
from tests.serving.test_many_tasks import RING, TEXTS, assert_close, key, with_upper_tasks
from tests.support.open_inference import described, inferred


@pytest.fixture(scope="module")
def served(new_server: Callable[..., Any], tiny_tasks: Any) -> Iterator[Any]:
    with new_server(start=True, access=Authenticator(RING)) as server:
        yield with_upper_tasks(server, tiny_tasks)


def tensor(name: str, data: list[str]) -> dict[str, Any]:
    return {"name": name, "datatype": "BYTES", "shape": [len(data)], "data": data}


def infer(server: Any, path: str, *inputs: dict[str, Any], who: str = "all", **more: Any) -> Any:
    body = {"inputs": list(inputs) or [tensor("input", TEXTS)], **more}
    return server.client.post(f"/v2/models/{path}/infer", json=body, headers=key(who))


def test_a_list_in_the_path_answers_as_each_task_alone_does(served: Any) -> None:
    models = ["three", "upper-a", "seven@1.0.0", "three+seven*0.5", "rating", "words", "several", "backbone"]
    response = infer(served, ",".join(models), id="42")
    assert response.status_code == 200, response.text
    body, found = response.json(), inferred(response.json())
    assert (body["model_name"], body["id"]) == (",".join(models), "42") and "model_version" not in body
    assert "x-sparsehub-digest" not in response.headers
    names = []
    for model in models:
        text = tensor("input" if model == "backbone" else "text", TEXTS)
        alone = infer(served, model, text, id="1").json()
        for name, expected in inferred(alone).items():
            output = found[f"{model}/{name}"]
            names.append(output["name"])
            read = [json.loads(row) for row in output["data"]] if name == "words" else output["data"]
            assert_close(read, [json.loads(row) for row in expected["data"]] if name == "words" else expected["data"])
            assert (output["shape"], output["datatype"]) == (expected["shape"], expected["datatype"])
            assert output["parameters"]["model"] == model
            assert output["parameters"].get("digest") == alone.get("parameters", {}).get("digest")
            assert output["parameters"].get("version") == alone.get("model_version")
    assert list(found) == names, "in the order of the list"


def test_a_client_quotes_the_comma_and_may_leave_the_id_out(served: Any) -> None:
    plain, quoted = infer(served, "three,upper-a").json(), infer(served, "three%2C upper-a").json()
    assert "id" not in plain and list(inferred(plain)) == list(inferred(quoted))


def test_each_task_fails_alone_and_is_never_left_out(served: Any) -> None:
    found = inferred(infer(served, "three,nobody,pair").json())
    assert list(found) == ["three/label", "three/probs", "nobody/error", "pair/error"]
    assert found["nobody/error"]["parameters"] == {"model": "nobody", "status": 404, "code": "UnknownTaskError"}
    assert found["pair/error"]["parameters"] == {"model": "pair", "status": 400, "code": "RequestError"}
    assert "expected: text_a, text_b" in found["pair/error"]["data"][0]
    one = inferred(infer(served, "three,nobody", outputs=[{"name": "three/probs"}]).json())
    assert list(one) == ["three/probs", "nobody/error"]
    other = inferred(infer(served, "three,nobody", outputs=[{"name": "nobody/label"}]).json())
    assert list(other) == ["nobody/error"]
    whole = infer(served, "nobody,pair")
    assert whole.status_code == 404 and whole.json()["error"]["code"] == "UnknownTaskError"


def test_fields_of_other_names_and_pairs(served: Any, tiny_tasks: Any) -> None:
    served.engine.add(tiny_tasks.read("sentence", fields=("sentence",), seed=50))
    served.engine.add(tiny_tasks.read("likeness", "regression", fields=("text_a", "text_b"), seed=9))
    both = inferred(infer(served, "three,sentence").json())
    assert set(both) == {"three/label", "three/probs", "sentence/label", "sentence/probs"}
    own = inferred(infer(served, "three,sentence", tensor("text", TEXTS)).json())
    assert set(own) == {"three/label", "three/probs", "sentence/error"}
    pairs = [tensor("text_b", ["a dog"]), tensor("text_a", ["the fox"])]
    found = inferred(infer(served, "pair,likeness", *pairs).json())
    assert set(found) == {"pair/label", "pair/probs", "likeness/score"}, found
    assert_close(found["likeness/score"]["data"], infer(served, "likeness", *pairs).json()["outputs"][0]["data"])
    for name in ("sentence", "likeness"):
        served.engine.remove(name)


def test_a_pattern_means_the_callers_own_tasks(served: Any) -> None:
    for who, pattern in (("all", "upper-*"), ("some", "upper-*"), ("some", "upp*")):
        found = inferred(infer(served, pattern, who=who).json())
        assert {name.partition("/")[0] for name in found} == {"upper-a", "upper-b", "upper-none"}
    missing = infer(served, "seven*", who="some")
    assert missing.status_code == 404 and "no task of the caller's" in missing.text


def test_a_list_with_a_task_of_others_is_refused_whole_and_names_nothing(served: Any) -> None:
    for method, more in (("POST", "/infer"), ("GET", ""), ("GET", "/ready")):
        for others in ("seven", "not-served", "three+seven*0.5"):
            path, body = f"/v2/models/three,{others}{more}", {"inputs": [tensor("input", TEXTS)]}
            refused = served.client.request(method, path, headers=key("some"), json=body if method == "POST" else None)
            assert refused.status_code == 403 and refused.json()["error"]["code"] == "ForbiddenError"
            assert not any(name in refused.text for name in ("three", "seven", "not-served"))


def test_several_tasks_describe_themselves(served: Any) -> None:
    def get(path: str, who: str = "all") -> Any:
        return served.client.get(f"/v2/models/{path}", headers=key(who))

    about = described(get("three,rating,words").json())
    assert about["name"] == "three,rating,words" and [t["name"] for t in about["inputs"]] == ["text"]
    outputs = infer(served, "three,rating,words", tensor("text", TEXTS)).json()["outputs"]
    assert [(o["name"], o["datatype"], [-1, *o["shape"][1:]]) for o in outputs] == [
        (o["name"], o["datatype"], o["shape"]) for o in about["outputs"]
    ]
    assert get("upper-*/ready", "some").json() == {"name": "upper-*", "ready": True}
    assert get("three,nobody/ready").status_code == get("three,nobody").status_code == 404
    other = get("three,pair")
    assert other.status_code == 400 and "found: text; text_a, text_b" in other.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("three,upper-a/versions/1.0.0", "a path with a version names one task"),
        ("upper-*/versions/1.0.0", "a path with a version names one task"),
        ("three,,seven", "not a list of tasks"),
        (",", "not a list of tasks"),
        (",".join(f"t{n}" for n in range(1001)), "found: 1001 names"),
        (f"three,{'x' * 301}", "not a list of tasks"),
        ("three,seven,three", "a task stands twice in the list; found: 'three'"),
        ("three,upper-*", "a list holds a pattern; found: 'upper-*'"),
        ("three,seven*", "a list holds a pattern"),
        ("three,+seven", "not a composition"),
    ],
)
def test_what_is_no_list_is_refused_and_says_why(served: Any, path: str, message: str) -> None:
    for refused in (infer(served, path), served.client.get(f"/v2/models/{path}", headers=key("all"))):
        assert refused.status_code == 400 and message in refused.json()["error"]["message"], refused.text


def test_tensors_that_do_not_fit_and_too_many_rows(served: Any, new_server: Callable[..., Any]) -> None:
    short = {**tensor("input", ["a"]), "shape": [2]}
    assert "another size than its shape" in infer(served, "three,seven", short).json()["error"]["message"]
    uneven = infer(served, "pair,three", tensor("text_a", ["a", "b"]), tensor("text_b", ["a"]))
    assert uneven.status_code == 400 and "differ in length" in uneven.text
    blank = infer(served, "three,seven", tensor("input", ["a", ""]))
    assert blank.status_code == 400 and "is empty" in blank.text
    unknown = infer(served, "three,seven", outputs=[{"name": "three/logits"}])
    assert unknown.status_code == 400 and "expected: three/label, three/probs, seven/label" in unknown.text
    for path in ("three", "three,seven"):
        name = "probs" if path == "three" else "three/probs"
        twice = infer(served, path, tensor("text", TEXTS), outputs=[{"name": name}] * 2)
        assert twice.status_code == 400 and "an output is wanted twice" in twice.text
    with new_server(start=True, max_items=5) as small:
        many = small.client.post("/v2/models/three,seven/infer", json={"inputs": [tensor("text", TEXTS)]})
        assert many.status_code == 400 and "found: 3 for each of 2 tasks" in many.json()["error"]["message"]


def test_a_task_counts_as_if_it_had_been_asked_alone(served: Any) -> None:
    def states() -> dict[str, Any]:
        listed = served.client.get("/v1/tasks", headers=key("all")).json()["data"]
        return {state["name"]: (state["requests"], state["items"], state["failed"]) for state in listed}

    before = states()
    infer(served, "upper-a,nobody,pair", tensor("text", TEXTS))
    grown = {
        name: tuple(after - was for after, was in zip(state, before[name], strict=True))
        for name, state in states().items()
        if state != before[name]
    }
    assert grown == {"upper-a": (1, 3, 0), "pair": (1, 0, 1)}
