"""What every route sends: key by key as it is written down, and as the OpenAPI document says.

`tests/serving/responses.json` holds the keys in their order, which are there and which are null. A value stands there
as its kind; only words that clients compare (`object`, `finish_reason`, ...) stand as they are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from fastapi.routing import APIRoute
from schemathesis.specs.openapi import checks

from serving.app import create_app
from serving.auth import ADMIN, Authenticator, Key, KeyRing
from serving.openapi import ERROR_RESPONSES
from serving.protocol.base import ApiModel
from serving.protocol.errors import failed_item
from serving.routes import ROUTERS
from sparsehub.errors import RequestError
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
    "classify, several labels": ("POST", "/v1/classify", {"model": "several", "input": TEXTS}),
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
    "home": ("GET", "/", None),
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
    "metadata, several labels": ("GET", "/v2/models/several", None),
    "infer, several labels": ("POST", "/v2/models/several/infer", {"inputs": [TENSOR]}),
    "infer, several tasks": ("POST", "/v2/models/seven,nobody/infer", {"inputs": [TENSOR], "id": "42"}),
    "metadata, several tasks": ("GET", "/v2/models/seven,rating", None),
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


TEXT_ROUTES = ("/healthz", "/readyz", "/metrics")
ALIASES = {("POST", "/rerank"), ("GET", "/v2/models/{task}/versions/{version}/ready")}


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


DOCUMENT: dict[str, Any] = create_app().openapi()
CHECKS = [checks.status_code_conformance, checks.content_type_conformance, checks.response_schema_conformance]


@cache
def described() -> Any:
    return schemathesis.openapi.from_dict(DOCUMENT)


def declared(method: str, path: str) -> tuple[str, dict[str, str]]:
    """The path of the document that a request's path is one of, and its parameters: of several the longest, which says
    most of it."""
    found = {}
    for template, verbs in DOCUMENT["paths"].items():
        fits = re.fullmatch(re.sub(r"{(\w+)}", r"(?P<\1>.+)", template), path)
        if fits and method.lower() in verbs:
            found[template] = fits.groupdict()
    return max(found.items(), key=lambda item: len(item[0]))


def as_described(response: httpx.Response) -> httpx.Response:
    """The response, once it was held against the document: its status, content type and body."""
    path, parameters = declared(response.request.method, response.request.url.path)
    case = described()[path][response.request.method].Case(path_parameters=parameters)
    case.validate_response(response, checks=CHECKS)
    return response


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
    if name != "unknown path":
        as_described(response)


def test_what_is_sent_of_tasks(new_server: Callable[..., Any]) -> None:
    """Of one that was asked for, and of those that were not."""
    with new_server(start=True) as server:
        server.post("/v1/classify", model="three", input="a")
        response = server.client.get("/v1/tasks")
    assert [response.status_code, kinds_of(as_described(response).text)] == EXPECTED["tasks"]


def events_of(content: str) -> list[Any]:
    """What the events of a stream hold, each form once, and its last line."""
    *lines, last = content.strip().split("\n\n")
    return [*once(kinds_of(line.removeprefix("data: ")) for line in lines), last]


@pytest.mark.parametrize("name", TOLD)
def test_what_is_sent_of_a_generated_text(language_server: Any, name: str) -> None:
    path, body = TOLD[name]
    response = language_server.post(path, **body)
    assert response.headers["content-type"] == "application/json"
    assert [response.status_code, kinds_of(as_described(response).text)] == EXPECTED[name]
    stream = language_server.post(path, **body, stream=True, stream_options={"include_usage": True})
    assert stream.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert [stream.status_code, events_of(as_described(stream).text)] == EXPECTED[f"{name}, stream"]


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
        found["catalog, versions"] = server.client.get("/v1/admin/catalog/versions/seven")
        found |= {name: server.post(f"/v1/admin/catalog/{act}", **body) for name, (act, body) in ACTS.items()}
    for name, response in found.items():
        assert [response.status_code, kinds_of(as_described(response).text)] == EXPECTED[name], name


def test_what_is_sent_as_text(scorer: Any) -> None:
    for path, text in (("/healthz", "ok\n"), ("/readyz", "ready\n")):
        response = scorer.client.get(path)
        assert (response.status_code, response.text) == (200, text)
        assert response.headers["content-type"] == "text/plain; charset=utf-8"
    assert scorer.client.get("/metrics").headers["content-type"].startswith("text/plain; version=")
    for path in TEXT_ROUTES:
        as_described(scorer.client.get(path))


def test_what_is_sent_while_the_engine_takes_no_work(halted: Callable[..., Any]) -> None:
    server = halted()
    server.engine.arena.swap.healthy = False
    text, ready = server.client.get("/readyz"), server.client.get("/v2/health/ready")
    assert (text.status_code, text.text) == (503, "the engine is unhealthy\n")
    assert (ready.status_code, ready.json()) == (503, {"ready": False})
    asked = server.post("/v1/classify", model="three", input="a")
    assert asked.status_code == 503 and asked.json()["error"]["type"] == "server_error"
    for response in (text, ready, asked):
        as_described(response)


def test_what_is_sent_of_an_input_that_fails_alone() -> None:
    item = failed_item(3, RequestError("too long", found="9 tokens", expected="at most 8"))
    message = "too long; found: 9 tokens; expected: at most 8"
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
    assert item.model_dump_json(exclude_unset=True) == json.dumps({"index": 3, "error": error}, separators=(",", ":"))


# what is described


def test_every_route_is_asked_here() -> None:
    asked = [(method, path) for method, path, _ in ASKED.values() if path != "/nowhere"]
    asked += [("POST", path) for path, _ in TOLD.values()]
    asked += [("POST", f"/v1/admin/catalog/{act}") for act, _ in ACTS.values()]
    catalog = ("/v1/admin/catalog", "/v1/admin/catalog/versions/seven")
    asked += [("GET", path) for path in ("/v1/tasks", *catalog, *TEXT_ROUTES)]
    operations = {(method.upper(), path) for path, verbs in DOCUMENT["paths"].items() for method in verbs}
    assert operations - {(method, declared(method, path)[0]) for method, path in asked} == ALIASES


def test_every_route_has_a_response_model() -> None:
    routes = [route for router in ROUTERS for route in router.routes]
    assert len(routes) > 30 and all(isinstance(route, APIRoute) for route in routes)
    for route in routes:
        model = route.response_model
        text = route.path in TEXT_ROUTES
        assert model is str if text else issubclass(model, ApiModel), route.path
        assert route.response_class.media_type == "text/plain" if text else True


def test_every_body_is_described() -> None:
    """Whole: with fields that are named, each with a type, and nothing beside them."""
    for path, verbs in DOCUMENT["paths"].items():
        for method, operation in verbs.items():
            sent = {code: found["content"] for code, found in operation["responses"].items()}
            media = "text/plain" if path in TEXT_ROUTES else "application/json"
            assert media in sent["200"] and set(map(int, sent)) == {200, *ERROR_RESPONSES}, path
            assert ("requestBody" in operation) == (method == "post" and not path.endswith("/reload")), path
            held = [*sent.values(), operation.get("requestBody", {"content": {}})["content"]]
            for kind, found in ((kind, found) for content in held for kind, found in content.items()):
                assert kind in ("text/plain", "text/event-stream") or found["schema"]["$ref"], path
    for name, schema in DOCUMENT["components"]["schemas"].items():
        assert schema["type"] == "object" and schema["properties"] and schema["description"], name
        loose = name in ("InferenceRequest", "InputTensor", "RequestedOutput")  # the protocol lets clients send more
        assert schema.get("additionalProperties") is (None if loose else False), name
        for field, found in schema["properties"].items():
            assert found.keys() & {"type", "anyOf", "$ref", "const", "enum"}, f"{name}.{field}"
