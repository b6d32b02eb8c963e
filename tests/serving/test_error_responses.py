"""Every error has OpenAI's shape and an honest status; none breaks what comes after it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from sparsehub.engine import Task
from sparsehub.errors import BackboneMismatchError, IntegrityError, UnreachableError, UsageError

LONG = "the " * 100


def error_of(response: httpx.Response) -> dict[str, Any]:
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert isinstance(body["error"]["message"], str) and "Traceback" not in body["error"]["message"]
    return body["error"]


@pytest.fixture(autouse=True)
def still_answers(server: Any) -> Iterator[None]:
    yield
    assert server.post("/v1/classify", model="three", input="the fox").status_code == 200
    assert server.engine.waiting == 0


@pytest.mark.parametrize(
    "content", [b"{", b"", b"null", b"[]", b'"three"', b"{'model': 'three'}", b'{"model": "three"}', b"\xff\xfe{}"]
)
@pytest.mark.parametrize("path", ["/v1/classify", "/v1/score", "/v1/embeddings"])
def test_a_malformed_body_is_400(server: Any, path: str, content: bytes) -> None:
    response = server.client.post(path, content=content, headers={"content-type": "application/json"})
    error = error_of(response)
    assert response.status_code == 400
    assert error["type"] == "invalid_request_error"


JSON_ROUTES = [
    "/v1/classify",
    "/v1/score",
    "/v1/rerank",
    "/v1/embeddings",
    "/v1/completions",
    "/v1/chat/completions",
    "/v2/models/three/infer",
]


@pytest.mark.parametrize("path", JSON_ROUTES)
@pytest.mark.parametrize(
    ("kind", "content"),
    [
        (None, b'{"model": "three", "input": "a"}'),
        ("application/x-www-form-urlencoded", b'{"model": "three", "input": "a"}'),
        ("application/x-www-form-urlencoded", b"model=three&input=a"),
        (
            "multipart/form-data; boundary=x",
            b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\nthree\r\n--x--',
        ),
        ("text/plain; charset=utf-8", b'{"model": "three", "input": "a"}'),
    ],
)
def test_a_body_that_was_not_sent_as_json_is_told_so(server: Any, path: str, kind: str | None, content: bytes) -> None:
    response = server.client.post(path, content=content, headers={"content-type": kind} if kind else {})
    error = error_of(response)
    assert response.status_code == 400 and error["code"] == "malformed_body"
    assert (kind.partition(";")[0] if kind else "no Content-Type") in error["message"]
    assert "Content-Type: application/json" in error["message"] and error["type"] == "invalid_request_error"


@pytest.mark.parametrize("kind", ["application/json", "Application/JSON; charset=utf-8", "application/vnd.api+json"])
def test_json_by_any_of_its_names_is_read(server: Any, kind: str) -> None:
    body = b'{"model": "three", "input": "the fox"}'
    assert server.client.post("/v1/classify", content=body, headers={"content-type": kind}).status_code == 200


def test_a_compressed_body_is_told_so(server: Any) -> None:
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    response = server.client.post("/v1/classify", content=b"\x1f\x8b", headers=headers)
    assert response.status_code == 400 and "Content-Encoding: gzip" in error_of(response)["message"]


def test_fields_in_the_query_are_told_where_they_belong(server: Any) -> None:
    alone = server.client.post("/v1/classify?model=three&input=a")
    assert alone.status_code == 400
    assert "no body; fields are read from a JSON body, not from the address's query" in error_of(alone)["message"]
    beside = server.client.post("/v1/classify?model=three", json={"input": "a"})
    error = error_of(beside)
    assert beside.status_code == 400 and error["param"] == "model"
    assert "model: Field required (it is read from a JSON body, not from the address's query)" in error["message"]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/classify", {"model": 5, "input": "a"}, "model"),
        ("/v1/classify", {"model": "", "input": "a"}, "model"),
        ("/v1/classify", {"model": "x" * 1000, "input": "a"}, "model"),
        ("/v1/classify", {"input": "a"}, "model"),
        ("/v1/classify", {"model": "three", "input": "a", "temperature": 1}, "temperature"),
        ("/v1/classify", {"model": "three", "input": "a", "truncate_prompt_tokens": -2}, "truncate_prompt_tokens"),
        ("/v1/score", {"model": "rating", "text_1": 5}, "text_1"),
        ("/v1/embeddings", {"model": "three", "input": 5}, "input"),
        ("/v1/embeddings", {"model": "three", "input": "a", "encoding_format": "xml"}, "encoding_format"),
        ("/v1/embeddings", {"model": "three"}, "input"),
    ],
)
def test_a_wrong_field_is_400_and_named(server: Any, path: str, body: dict[str, Any], param: str) -> None:
    response = server.client.post(path, json=body)
    error = error_of(response)
    assert response.status_code == 400
    assert error["param"] is not None and error["param"].startswith(param)
    assert error["code"] == "malformed_body"
    assert param in error["message"]


@pytest.mark.parametrize("path", ["/v1/classify", "/v1/score", "/v1/embeddings"])
@pytest.mark.parametrize("model", ["thre", "three@9.9.9", "three@sha256:00", "@", "../three", "\u0000"])
def test_an_unknown_task_is_404(server: Any, path: str, model: str) -> None:
    response = server.post(path, model=model, input="a")
    error = error_of(response)
    assert response.status_code == 404
    assert error["type"] == "not_found_error" and error["code"] == "UnknownTaskError"
    if model == "thre":
        assert "did you mean 'three'" in error["message"]


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/v1/classify", {"model": "three", "input": []}, "the input is empty"),
        ("/v1/classify", {"model": "three", "input": ""}, "'text' is empty"),
        ("/v1/classify", {"model": "three", "input": ["a", " \n "]}, "input 1: 'text' is empty"),
        ("/v1/classify", {"model": "three", "input": None}, "is no text"),
        ("/v1/classify", {"model": "three", "input": [5]}, "is no text"),
        ("/v1/classify", {"model": "three", "input": [[["a"]]]}, "is no text"),
        ("/v1/classify", {"model": "three", "input": LONG}, "input 0 is too long"),
        ("/v1/classify", {"model": "pair", "input": "a"}, "does not fit this task"),
        ("/v1/classify", {"model": "pair", "input": {"text_a": "a"}}, "has other fields"),
        ("/v1/classify", {"model": "pair", "input": {"text_a": "a", "text_b": "b", "c": "d"}}, "has other fields"),
        ("/v1/classify", {"model": "rating", "input": "a"}, "post to /v1/score"),
        ("/v1/score", {"model": "three", "input": "a"}, "post to /v1/classify"),
        ("/v1/score", {"model": "rating"}, "give either input or text_1"),
        ("/v1/score", {"model": "rating", "input": "a", "text_1": "a"}, "give either input or text_1"),
        ("/v1/score", {"model": "rating", "text_1": ["a", "b"], "text_2": ["a", "b", "c"]}, "differ in length"),
        ("/v1/score", {"model": "rating", "text_1": "a", "text_2": "b"}, "'text' is no text; found: list"),
        ("/v1/score", {"model": "backbone", "text_1": "a"}, "the backbone scores two texts"),
        ("/v1/score", {"model": "backbone", "text_1": [], "text_2": []}, "the input is empty"),
        ("/v1/score", {"model": "rating", "text_1": []}, "the input is empty"),
        ("/v1/score", {"model": "backbone", "input": [["a", 5]]}, "is no text"),
        ("/v1/embeddings", {"model": "three", "input": []}, "the input is empty"),
        ("/v1/embeddings", {"model": "three", "input": ["a", ""]}, "is empty"),
        ("/v1/embeddings", {"model": "backbone", "input": LONG}, "input 0 is too long"),
        ("/v1/classify", {"model": "three", "input": ["a"] * 1025}, "too many inputs in one request"),
    ],
)
def test_an_input_that_does_not_fit_is_400(server: Any, path: str, body: dict[str, Any], message: str) -> None:
    response = server.client.post(path, json=body)
    assert response.status_code == 400
    assert message in error_of(response)["message"]


@pytest.mark.parametrize(
    ("path", "model"), [("/v1/classify", "three"), ("/v1/score", "rating"), ("/v1/embeddings", "backbone")]
)
def test_an_over_long_input_is_cut_where_the_client_asks_for_it(server: Any, path: str, model: str) -> None:
    response = server.post(path, model=model, input=["the fox", LONG], truncate_prompt_tokens=-1)
    assert response.status_code == 200
    assert len(response.json()["data"]) == 2


@pytest.mark.parametrize(
    "content",
    [
        b'{"model": "three", "input": "the \\ud800 fox"}',
        b'{"model": "three", "input": {"\\ud800": "fox"}}',
        b'{"model": "three", "input": "a", "\\ud800": 1}',
        b'{"model": "\\ud800", "input": "a"}',
        b'{"model": "words", "input": [["fox", "\\udfff"]]}',
    ],
)
def test_half_of_a_surrogate_pair_is_400_wherever_it_stands(server: Any, content: bytes) -> None:
    response = server.client.post("/v1/classify", content=content, headers={"content-type": "application/json"})
    assert response.status_code == 400
    error_of(response)


@pytest.mark.parametrize("path", ["/v1", "/v1/nothing", "/v1/classify/more", "/%ff"])
def test_an_unknown_route_is_404(server: Any, path: str) -> None:
    response = server.client.get(path)
    assert response.status_code == 404
    error = error_of(response)
    assert error["type"] == "not_found_error" and "Not Found" in error["message"]


@pytest.mark.parametrize(("method", "path"), [("GET", "/v1/classify"), ("PUT", "/v1/score"), ("POST", "/v1/models")])
def test_a_wrong_method_is_405(server: Any, method: str, path: str) -> None:
    response = server.client.request(method, path)
    assert response.status_code == 405
    assert "Method Not Allowed" in error_of(response)["message"]
    assert response.headers["allow"] in ("GET", "POST")


def test_a_row_that_fails_alone_stands_in_its_place(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    head = server.engine._residency.handle(server.engine.tasks.find("three").digest).resident.head
    token, sound = server.engine.tokenizer.convert_tokens_to_ids("river"), head._model.forward

    def forward(**inputs: Any) -> Any:
        if bool((inputs["input_ids"] == token).any()):
            raise RuntimeError("a poisoned row")
        return sound(**inputs)

    with monkeypatch.context() as patched:
        patched.setattr(head._model, "forward", forward)
        mixed = server.post("/v1/classify", model="three", input=["the fox", "a river", "a dog"])
        alone = server.post("/v1/classify", model="three", input="a river")
    assert mixed.status_code == 200
    good, bad, other = mixed.json()["data"]
    assert good["label"] and other["label"]
    assert bad["index"] == 1 and "a poisoned row" in bad["error"]["message"]
    assert alone.status_code == 400 and "a poisoned row" in error_of(alone)["message"]


@pytest.mark.parametrize(
    "error",
    [
        UnreachableError("no answer"),
        IntegrityError("other bytes"),
        UsageError("the disk has no room"),
        OSError("the disk is gone"),
        BackboneMismatchError("other weights"),
    ],
)
def test_a_task_that_cannot_be_loaded_is_503_with_retry_after(server: Any, error: Exception) -> None:
    def load() -> Any:
        raise error

    server.engine.register(Task("away", "1.0.0", "sha256:" + "e" * 64, load))
    response = server.post("/v1/classify", model="away", input="a")
    server.engine.remove("away")
    assert response.status_code == 503 and int(response.headers["retry-after"]) > 0
    assert str(error) in error_of(response)["message"] and error_of(response)["code"]


def test_what_nobody_expected_is_500_without_its_inside(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("a secret of the inside")

    with monkeypatch.context() as patched:
        patched.setattr(server.engine, "prepare", broken)
        response = server.post("/v1/classify", model="three", input="a")
    assert response.status_code == 500
    error = error_of(response)
    assert error["type"] == "server_error" and "secret" not in error["message"]
    assert 'sparsehub_requests_total{route="/v1/classify",status="500"} 1.0' in server.client.get("/metrics").text
