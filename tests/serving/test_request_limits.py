"""Bodies that would hold up everybody are refused before they are validated or tokenised."""

from __future__ import annotations

import dataclasses
import json
import socket
import time
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest

from serving.auth import ANONYMOUS
from serving.request.body import SMALL, check_structure
from serving.request.limits import check_size
from serving.settings import Settings
from sparsehub.errors import RequestError

SETTINGS = Settings("tiny/bert", hub="hub", max_items=10, max_tokens=5000)
INTEGERS = b"1," * 200_000 + b"1"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/embeddings", b'{"model": "backbone", "input": [%b]}'),
        ("/v1/rerank", b'{"model": "backbone", "query": "a", "documents": [%b]}'),
        ("/v1/score", b'{"model": "backbone", "text_1": [%b], "text_2": "a"}'),
        ("/v1/classify", b'{"model": "three", "input": [%b]}'),
        ("/v1/completions", b'{"model": "backbone", "prompt": [["", %b]]}'),
        ("/v1/completions", b'{"model": "backbone", "prompt": "a", "stop": [%b]}'),
        ("/v1/chat/completions", b'{"model": "backbone", "messages": [%b]}'),
        ("/v2/models/three/infer", b'{"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": [%b]}]}'),
        ("/v2/models/three/infer", b'{"inputs": [{"name": "text", "shape": [%b], "datatype": "BYTES", "data": []}]}'),
    ],
)
def test_a_long_list_of_the_wrong_type_is_refused_at_once(server: Any, path: str, body: bytes) -> None:
    began = time.monotonic()
    response = server.client.post(path, content=body % INTEGERS, headers={"content-type": "application/json"})
    assert response.status_code == 400 and len(response.content) < 2000
    assert time.monotonic() - began < 1  # it was 1 to 4 s when every element had its own error


@pytest.mark.parametrize("field", ["seed", "max_tokens", "n", "top_n"])
@pytest.mark.parametrize("digits", [20, 4000, 5000])
def test_a_number_of_thousands_of_digits_is_malformed(server: Any, field: str, digits: int) -> None:
    number = "9" * digits
    path = "/v1/rerank" if field == "top_n" else "/v1/completions"
    rest = '"query": "a", "documents": ["a"]' if field == "top_n" else '"prompt": "a"'
    body = f'{{"model": "backbone", {rest}, "{field}": {number}}}'
    response = server.client.post(path, content=body, headers={"content-type": "application/json"})
    assert response.status_code == (400 if field != "top_n" or digits > 4300 else 200)


def test_an_object_of_too_many_fields_is_refused(server: Any) -> None:
    response = server.post("/v1/embeddings", **{f"field{i}": i for i in range(50_000)})
    assert response.status_code == 400 and "too many fields" in response.json()["error"]["message"]


def test_values_and_objects_are_counted() -> None:
    texts = [{"text": "a" * 100}] * 40
    check_structure(SETTINGS, json.dumps({"documents": texts[:39]}).encode())
    check_structure(SETTINGS, json.dumps({"input": "{" * 5000}).encode())  # a text that looks like objects
    check_structure(SETTINGS, b"{" * 5000)  # no JSON, which is refused later
    check_structure(SETTINGS, b"[" * 1_000_000)
    with pytest.raises(RequestError, match="too many objects in the request's body; found: 81; expected: at most 40"):
        check_structure(SETTINGS, json.dumps({"documents": texts * 2}).encode())
    with pytest.raises(RequestError, match="too many values in the request's body; found: 5001"):
        check_structure(SETTINGS, b"[" + b"1," * 5001 + b"1]")


@pytest.mark.parametrize(
    "inputs",
    [
        ["a" * 40_008],
        ["a" * 20_004] * 2,
        [{"text": "a" * 40_008}],
        [["a" * 20_004, "b" * 20_004]],
        [[7] * 5001],
        [[{"role": "user", "content": "a" * 40_008}]],
    ],
)
def test_tokens_are_charged_by_what_was_sent(inputs: list[Any]) -> None:
    with pytest.raises(RequestError, match="too many tokens in one request; found: 5001"):
        check_size(SETTINGS, inputs)
    assert check_size(SETTINGS, ["a" * 800]) == 100


def test_a_cut_does_not_make_a_text_cheap(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    charged: list[int] = []
    bucket: Any = SimpleNamespace(take=lambda amount, what: charged.append(amount))
    monkeypatch.setattr(server.access, "identify", lambda *_: dataclasses.replace(ANONYMOUS, tokens=bucket))
    response = server.post("/v1/classify", model="three", input="the " * 10_000, truncate_prompt_tokens=-1)
    assert response.status_code == 200 and response.json()["usage"]["prompt_tokens"] == 48
    assert charged == [5000]


def test_a_public_path_reads_no_body(server: Any) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as half:
        half.sendall(b"POST /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\nabc")
        assert half.recv(100).startswith(b"HTTP/1.1 405")


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


@pytest.mark.parametrize(
    ("what", "body"),
    [
        ("objects", _json([{}] * 60)),
        ("objects", b'{"a": [' + b"{}," * 60),  # cut off: as much would be made of it before it is refused
        ("lists", _json([[]] * 60)),
        ("lists", _json({'a \\" [': [[1]] * 60})),
        ("fields", _json({f"k{i}": 1 for i in range(700)})),
        ("fields", b"{" + b'"a"\n : 1,' * 700 + b'"b": 1}'),
    ],
)
def test_parts_of_json_are_counted_outside_of_its_strings(what: str, body: bytes) -> None:
    padding = b" " * 5000  # a tiny body is not looked at
    with pytest.raises(RequestError, match=f"too many {what} in the request's body; found: [67]"):
        check_structure(SETTINGS, body + padding)


@pytest.mark.parametrize("text", ['{"a": [1]}' * 500, '\\"{[:' * 500, "\\", '"', '"\\' * 700, "{[:\n" * 900])
def test_a_text_may_look_like_any_structure(text: str) -> None:
    check_structure(SETTINGS, _json({"model": "a", "input": [text, "{", text]}) + b" " * 5000)


def test_strings_that_do_not_end_take_no_longer() -> None:
    for body in (b'"\\"' * 300_000, b'"' + b'\\"' * 500_000, b'":{[' * 200_000, b'"\\' * 400_000 + b"\\"):
        began = time.monotonic()
        with suppress(RequestError):
            check_structure(SETTINGS, body)
        assert time.monotonic() - began < 5  # quadratic it would be hours


@pytest.mark.parametrize("end", [b"", b"x", b"]"])
def test_a_large_body_is_answered_as_a_small_one_is(server: Any, end: bytes) -> None:
    """It is parsed in a thread."""
    answers = []
    for size in (2, SMALL + 10):
        body = b'{"model": "nobody", "input": "' + b"a" * size + b'"}' + end
        headers = {"content-type": "application/json"}
        answers.append(server.client.post("/v1/classify", content=body, headers=headers))
    small, large = answers
    assert small.status_code == large.status_code == (400 if end else 404)
    assert small.json()["error"]["code"] == large.json()["error"]["code"]
