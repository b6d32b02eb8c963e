"""Two replicas under Ray Serve: one endpoint, whichever of them answers, and whichever is lost."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI
from prometheus_client.parser import text_string_to_metric_families

from tests.support.hostile_requests import BODIES, PATHS

pytestmark = pytest.mark.slow
BODY = 100_000  # bytes, more than the endpoint takes
REPLICAS = 2  # as the endpoint is started
TASKS = ("three", "seven", "pair", "rating", "east", "west", "north", "south", "middle")
TEXTS = ("the fox", "a dog", "who wrote the book")


def classify(client: httpx.Client, task: str, text: Any) -> httpx.Response:
    path = "/v1/score" if task == "rating" else "/v1/classify"
    return client.post(path, json={"model": task, "input": [text]})


def numbers(response: httpx.Response) -> list[float]:
    entry = response.json()["data"][0]
    return entry["probs"] if "probs" in entry else [entry["score"]]


def test_every_replica_answers_what_one_process_answers(
    endpoint: Any, reference_of: Callable[[str], Callable[[Any], list[float]]]
) -> None:
    with endpoint.client() as client:
        for task in TASKS[:4]:
            for text in TEXTS:
                item = [text, "a film"] if task == "pair" else text
                answer = classify(client, task, item)
                assert answer.status_code == 200, answer.text
                assert numbers(answer) == pytest.approx(reference_of(task)(item), abs=1e-4)
                assert answer.headers["x-sparsehub-digest"] == answer.json()["digest"]
        infer = {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a dog"]}]}
        tensors = client.post("/v2/models/three/infer", json=infer).json()["outputs"]
        assert tensors[1]["data"] == pytest.approx(reference_of("three")("a dog"), abs=1e-4)
        assert client.post("/v1/embeddings", json={"model": "backbone", "input": "a dog"}).status_code == 200


def test_a_task_is_asked_where_it_is_ready(endpoint: Any) -> None:
    """Its name is in the body, in the path, at a version or the first of a composition: it is one place."""
    with endpoint.client() as client:
        places = {
            task: classify(client, task, TEXTS[0]).headers["x-sparsehub-replica"] for task in ("east", "west")
        }  # that no other test asks
        time.sleep(0.5)  # until Ray has told the front
        for task, place in places.items():
            infer = {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a dog"]}]}
            answers = [
                *[
                    classify(client, named, "a dog")
                    for named in (task, f"{task}@1.0.0", f"{task}*0.5")
                    for _ in range(3)
                ],
                *[client.post(f"/v2/models/{task}/infer", json=infer) for _ in range(3)],
            ]
            assert [a.status_code for a in answers] == [200] * len(answers)
            assert {a.headers["x-sparsehub-replica"] for a in answers} == {place}


def test_several_tasks_are_asked_where_most_of_them_are_ready(
    endpoint: Any, reference_of: Callable[[str], Callable[[Any], list[float]]]
) -> None:
    """Five tasks on two replicas, so one has more of them: it gets the list, whichever is named first."""
    tasks, places = TASKS[4:], {}
    with endpoint.client() as client:
        for task in tasks:
            places[task] = classify(client, task, TEXTS[0]).headers["x-sparsehub-replica"]
            time.sleep(1.5)  # until Ray has told the front
        (most, _), *_ = Counter(places.values()).most_common()
        listed = sorted(tasks, key=lambda task: places[task] == most)
        inputs = [{"name": "input", "shape": [1], "datatype": "BYTES", "data": [TEXTS[1]]}]
        answers = [
            client.post("/v1/classify", json={"model": listed, "input": TEXTS[1]}),
            client.post("/v1/embeddings", json={"model": [f"{task}@1.0.0" for task in listed], "input": TEXTS[1]}),
            client.post(f"/v2/models/{','.join(listed)}/infer", json={"inputs": inputs}),
        ]
        assert [answer.status_code for answer in answers] == [200] * 3, [answer.text for answer in answers]
        assert {answer.headers["x-sparsehub-replica"] for answer in answers} == {most}
        for task, part in zip(listed, answers[0].json()["data"], strict=True):
            assert part["task"] == f"{task}@1.0.0" and part["digest"] and len(part["data"]) == 1
        third = client.post("/v1/classify", json={"model": ["three", "seven"], "input": TEXTS[1]}).json()["data"]
        for task, part in zip(("three", "seven"), third, strict=True):
            assert part["data"][0]["probs"] == pytest.approx(reference_of(task)(TEXTS[1]), abs=1e-4)
        fits = client.post("/v1/classify", json={"model": "*st", "input": TEXTS[1]})
        assert [part["model"] for part in fits.json()["data"]] == ["east", "west"]


def test_the_gate_of_a_replica_guards_it_behind_the_front_too(endpoint: Any) -> None:
    with endpoint.client(key="") as stranger:
        assert classify(stranger, "three", "a").status_code == 401
        assert stranger.get("/metrics").status_code == 401
    with endpoint.client() as client:
        acts = client.post("/v1/admin/catalog/remove", json={"task": "three"}), client.get("/metrics")
        assert [act.status_code for act in acts] == [403, 403]
        unknown = classify(client, "thre", "a")
        assert unknown.status_code == 404 and "did you mean 'three'" in unknown.json()["error"]["message"]
        large = classify(client, "three", "a" * 70_000)
        assert large.status_code == 413 and large.json()["error"]["code"] == "BodyTooLargeError"
        broken = client.post("/v1/classify", content=b"{" * 100)
        assert broken.status_code == 400 and broken.json()["error"]["code"] == "malformed_body"
        named = client.get("/v1/models", headers={"x-request-id": "mine"})
        assert named.headers.get_list("x-request-id") == ["mine"]


def test_hostile_requests_are_refused_and_hurt_nobody_else(endpoint: Any) -> None:
    """Bodies that do not come and heads that do not end take nothing from others; no path is kept anywhere."""
    choices, statuses, headers = random.Random(5), Counter[int](), {"content-type": "application/json"}
    half = b"POST /v1/classify HTTP/1.1\r\nHost: a\r\nContent-Length: 60000\r\n\r\n{"
    with ExitStack() as stack:
        client, scraper, stranger = (stack.enter_context(endpoint.client(key)) for key in ("team", "prometheus", ""))
        for sent in (half, b"", b"GET /healthz HTTP/1.1\r\nX: ") * 10:
            stack.enter_context(endpoint.connected(sent))
        for make in BODIES * 3:
            try:
                answer = client.post(choices.choice(PATHS), content=make(choices)[:BODY], headers=headers)
                statuses[answer.status_code] += 1
            except httpx.TransportError:  # the end is near before all of a large body was sent
                statuses[413] += 1
            assert classify(client, "three", "a dog").status_code == 200
        for number in range(40):
            statuses[stranger.get(f"/{number}{'a' * 5000}", headers={"X-Large": "b" * 20_000}).status_code] += 1
        assert set(statuses) <= {400, 401, 404, 413} and statuses[400] and statuses[413]
        assert (metrics := scraper.get("/metrics")).status_code == 200 and "aaaa" not in metrics.text


def test_metrics_and_the_state_of_tasks_are_of_all_replicas(endpoint: Any) -> None:
    with endpoint.client("prometheus") as client:
        families = {f.name: f for f in text_string_to_metric_families(client.get("/metrics").text)}
        served = {sample.labels["replica"]: sample.value for sample in families["sparsehub_tasks"].samples}
        assert list(served.values()) == [float(len(TASKS))] * REPLICAS
        entries = client.get("/v1/tasks").json()["data"]
        assert Counter(entry["name"] for entry in entries) == dict.fromkeys(TASKS, REPLICAS)
        assert {entry["replica"] for entry in entries} == set(served)


def test_a_change_of_the_catalogue_reaches_all_replicas(endpoint: Any) -> None:
    """From outside, and by an admin's request, which one of them answers."""

    def holders(client: httpx.Client) -> int:
        served = client.get("/v1/tasks").json()["data"]  # loaded first, as `draining`, then given to requests
        return sum((entry["name"], entry["role"]) == ("words", "stable") for entry in served)

    with endpoint.client("platform") as admin:
        endpoint.add("words")
        endpoint.until(lambda: holders(admin) == REPLICAS, 15)
        assert classify(admin, "words", "a dog").status_code == 200
        assert admin.post("/v1/admin/catalog/remove", json={"task": "words"}).status_code == 200
        endpoint.until(lambda: holders(admin) == 0, 15)
        assert classify(admin, "words", "a dog").status_code == 404


def test_a_replica_that_is_killed_under_load_loses_no_answer(
    endpoint: Any, reference_of: Callable[[str], Callable[[Any], list[float]]]
) -> None:
    """The client is OpenAI's, with its two tries more."""
    asked = {(task, text): reference_of(task)(text) for task in ("three", "seven") for text in TEXTS}
    wrong: list[Any] = []
    answered, enough = Counter[str](), threading.Event()

    def load() -> None:
        with OpenAI(
            base_url="http://inside/v1", api_key=endpoint.keys["team"], http_client=endpoint.client()
        ) as client:
            while not enough.is_set():
                for (task, text), expected in asked.items():
                    answer = client.post("/classify", body={"model": task, "input": text}, cast_to=httpx.Response)
                    answered[answer.headers["x-sparsehub-replica"]] += 1
                    if numbers(answer) != pytest.approx(expected, abs=1e-4):
                        wrong.append((task, text, answer.text))

    with ThreadPoolExecutor(4) as clients:
        loads = [clients.submit(load) for _ in range(4)]
        try:
            endpoint.until(lambda: sum(answered.values()) > 40, 30)
            (busiest, _), *_ = answered.most_common()
            victim, before = endpoint.process_of(busiest), sum(answered.values())
            os.kill(victim, signal.SIGKILL)
            endpoint.until(lambda: sum(answered.values()) > before + 60, 30)
        finally:
            enough.set()
        for done in loads:
            done.result()
    assert wrong == [] and len(answered) > 1
    endpoint.until(lambda: len(endpoint.replicas()) == REPLICAS and victim not in endpoint.replicas(), 60)


def test_it_ends_as_a_whole_and_called_nobody(endpoint: Any) -> None:
    """The last one: it stops the endpoint."""
    endpoint.stop()
    endpoint.until(lambda: not endpoint.processes(), 10)
    assert not list(Path(endpoint.path).parent.rglob("usage_stats.json"))
