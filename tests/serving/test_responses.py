"""What every route sends, key by key: the order of the keys, which are there, which are null, what kind each value is.

`tests/serving/responses.json` holds what the endpoint sends. A value stands there as its kind; only words that clients
compare (`object`, `finish_reason`, ...) stand as they are.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from serving.auth import ADMIN, Authenticator, Key, KeyRing
from sparsehub.files import sha256_bytes
from sparsehub.hub import open_hub

EXPECTED = json.loads((Path(__file__).parent / "responses.json").read_text())
WORDS = {"object", "finish_reason", "role", "datatype", "platform", "type", "code"}
TEXTS = ["the fox", "who wrote the book"]
MESSAGES = [{"role": "user", "content": "Who waits?"}]
SAID: dict[str, Any] = {"model": "gruff", "max_tokens": 3, "temperature": 0}
TENSOR = {"name": "text", "datatype": "BYTES", "shape": [2], "data": TEXTS}

# name -> method, path, body
ASKED: dict[str, tuple[str, str, Any]] = {
    "classify": ("POST", "/v1/classify", {"model": "seven", "input": TEXTS}),
    "classify, words of texts": ("POST", "/v1/classify", {"model": "words", "input": TEXTS}),
    "classify, words of lists": ("POST", "/classify", {"model": "words", "input": [["the", "fox"]]}),
    "classify, choices": (
        "POST",
        "/classify",
        {"model": "choice", "input": {"text": "a", "choice1": "b", "choice2": "c"}},
    ),
    "score": ("POST", "/v1/score", {"model": "rating", "input": TEXTS}),
    "score, backbone": ("POST", "/score", {"model": "backbone", "text_1": "the fox", "text_2": TEXTS}),
    "rerank": ("POST", "/v1/rerank", {"model": "match", "query": "the fox", "documents": TEXTS}),
    "rerank, backbone": (
        "POST",
        "/v2/rerank",
        {"model": "backbone", "query": "the fox", "documents": TEXTS, "top_n": 1, "return_documents": False},
    ),
    "embeddings": ("POST", "/v1/embeddings", {"model": "three", "input": TEXTS}),
    "embeddings, backbone": ("POST", "/v1/embeddings", {"model": "backbone", "input": "the fox"}),
    "embeddings, base64": ("POST", "/v1/embeddings", {"model": "three", "input": TEXTS, "encoding_format": "base64"}),
    "models": ("GET", "/v1/models", None),
    "model": ("GET", "/v1/models/seven", None),
    "model, backbone": ("GET", "/v1/models/tiny/bert", None),
    "server": ("GET", "/v2", None),
    "live": ("GET", "/v2/health/live", None),
    "ready": ("GET", "/v2/health/ready", None),
    "model ready": ("GET", "/v2/models/seven/ready", None),
    "metadata": ("GET", "/v2/models/seven", None),
    "metadata, words": ("GET", "/v2/models/words/versions/1.0.0", None),
    "metadata, regression": ("GET", "/v2/models/rating", None),
    "infer": ("POST", "/v2/models/seven/infer", {"inputs": [TENSOR], "id": "42"}),
    "infer, one output": ("POST", "/v2/models/seven/infer", {"inputs": [TENSOR], "outputs": [{"name": "label"}]}),
    "infer, words": ("POST", "/v2/models/words/versions/1.0.0/infer", {"inputs": [TENSOR]}),
    "infer, regression": ("POST", "/v2/models/rating/infer", {"inputs": [TENSOR]}),
    "infer, backbone": ("POST", "/v2/models/backbone/infer", {"inputs": [{**TENSOR, "name": "input"}]}),
    "malformed": ("POST", "/v1/classify", {"model": 5, "input": "a"}),
    "no catalogue": ("GET", "/v1/admin/catalog", None),
    "unknown task": ("POST", "/v1/classify", {"model": "nobody", "input": "a"}),
    "unknown path": ("GET", "/nowhere", None),
}
TOLD: dict[str, tuple[str, dict[str, Any]]] = {
    "completion": ("/v1/completions", {"prompt": "SAILOR:\n", **SAID}),
    "completion, backbone": ("/v1/completions", {"prompt": "SAILOR:\n", **SAID, "model": "tiny/lm"}),
    "completion, log probabilities": ("/v1/completions", {"prompt": "SAILOR:\n", "logprobs": 2, **SAID}),
    "chat": ("/v1/chat/completions", {"messages": MESSAGES, **SAID}),
    "chat, log probabilities": (
        "/v1/chat/completions",
        {"messages": MESSAGES, "logprobs": True, "top_logprobs": 2, **SAID},
    ),
}
ACTS: dict[str, tuple[str, dict[str, Any]]] = {
    "catalog, add": ("add", {"reference": "seven@1.0.0", "items_per_second": 5}),
    "catalog, set": ("set", {"task": "seven", "pinned": True, "items_per_second": None}),
    "catalog, canary": ("canary", {"reference": "seven@2.0.0", "percent": 5}),
    "catalog, promote": ("promote", {"task": "seven"}),
    "catalog, rollback": ("rollback", {"task": "seven"}),
    "catalog, remove": ("remove", {"task": "seven"}),
    "catalog, unknown": ("remove", {"task": "seven"}),
    "catalog, conflict": ("remove", {"task": "seven", "revision": 77}),
    "catalog, reload": ("reload", {}),
}


def kinds_of(content: str) -> Any:
    """A JSON text with every object as a list of its pairs, in order, and every form of a list's items once."""
    return kind_of("", json.loads(content, object_pairs_hook=lambda pairs: {"": pairs}))


def kind_of(key: str, value: Any) -> Any:
    if isinstance(value, dict):
        told = "tokens" if key == "top_logprobs" and value[""][0][0] != "token" else None  # its keys are a text's own
        return [[told or name, kind_of(name, inner)] for name, inner in value[""]]
    if isinstance(value, list):
        return value if key in WORDS else once(kind_of(key, item) for item in value)
    return value if key in WORDS or value is None else type(value).__name__


def once(forms: Iterable[Any]) -> list[Any]:
    found: list[Any] = []
    for form in forms:
        found += [] if form in found else [form]
    return found


@pytest.fixture(scope="module")
def scorer(new_server: Callable[..., Any], tiny_tasks: Any) -> Iterator[Any]:
    with new_server(start=True) as server:
        server.engine.add(tiny_tasks.read("match", "regression", fields=("a", "b"), seed=9))
        yield server


@pytest.mark.parametrize("name", ASKED)
def test_what_is_sent(scorer: Any, name: str) -> None:
    method, path, body = ASKED[name]
    response = scorer.client.request(method, path, json=body)
    assert response.headers["content-type"] == "application/json"
    assert [response.status_code, kinds_of(response.text)] == EXPECTED[name]


def test_what_is_sent_of_tasks(new_server: Callable[..., Any]) -> None:
    """Of one that was asked for, and of those that were not."""
    with new_server(start=True) as server:
        server.post("/v1/classify", model="three", input="a")
        response = server.client.get("/v1/tasks")
    assert [response.status_code, kinds_of(response.text)] == EXPECTED["tasks"]


def events_of(content: str) -> list[Any]:
    """What the events of a stream hold, each form once, and its last line."""
    *lines, last = content.strip().split("\n\n")
    return [*once(kinds_of(line.removeprefix("data: ")) for line in lines), last]


@pytest.mark.parametrize("name", TOLD)
def test_what_is_sent_of_a_generated_text(language_server: Any, name: str) -> None:
    path, body = TOLD[name]
    response = language_server.post(path, **body)
    assert response.headers["content-type"] == "application/json"
    assert [response.status_code, kinds_of(response.text)] == EXPECTED[name]
    stream = language_server.post(path, **body, stream=True, stream_options={"include_usage": True})
    assert stream.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert [stream.status_code, events_of(stream.text)] == EXPECTED[f"{name}, stream"]


def test_what_is_sent_of_the_catalogue(
    new_server: Callable[..., Any], suite: Any, tiny_tasks: Any, tmp_path: Path
) -> None:
    hub, catalog = tmp_path / "hub", tmp_path / "catalog.json"
    for package in (suite["seven"], tiny_tasks.write("seven", labels=7, version="2.0.0", seed=7)):
        open_hub(hub).publish(package)
    ring = KeyRing((Key("boss", sha256_bytes(b"secret-of-boss-that-is-long"), ADMIN),))
    with new_server(start=True, access=Authenticator(ring), catalog=str(catalog), hub=str(hub)) as server:
        server.client.headers["authorization"] = "Bearer secret-of-boss-that-is-long"
        found = {"catalog": server.client.get("/v1/admin/catalog")}
        found |= {name: server.post(f"/v1/admin/catalog/{act}", **body) for name, (act, body) in ACTS.items()}
    for name, response in found.items():
        assert [response.status_code, kinds_of(response.text)] == EXPECTED[name], name


def test_what_is_sent_as_text(scorer: Any) -> None:
    for path, text in (("/healthz", "ok\n"), ("/readyz", "ready\n")):
        response = scorer.client.get(path)
        assert (response.status_code, response.text) == (200, text)
        assert response.headers["content-type"] == "text/plain; charset=utf-8"
    assert scorer.client.get("/metrics").headers["content-type"].startswith("text/plain; version=")
