"""The formats that clients speak already: OpenAI's own client, curl, and the protocols of vLLM, Cohere and KServe."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.routes.classify import tagged_words
from sparsehub.package.encoding import words_of
from sparsehub.package.outputs import Prediction

TEXTS = ["the fox", "who wrote the book", "a bad ending"]


@pytest.fixture(scope="module")
def client(server: Any) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="sk-none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def scorer(new_server: Callable[..., Any], tiny_tasks: Any) -> Iterator[Any]:
    """Serves a regression over two texts, beside the others."""
    with new_server(start=True) as server:
        server.engine.add(tiny_tasks.read("match", "regression", fields=("a", "b"), seed=9))
        yield server


def curl(server: Any, path: str, body: Any = None) -> tuple[int, Any]:
    if shutil.which("curl") is None:
        pytest.skip("there is no curl here")
    command = ["curl", "--silent", "--noproxy", "*", "--max-time", "60", "--write-out", "\n%{http_code}"]
    if body is not None:
        command += ["--json", json.dumps(body)]
    done = subprocess.run(
        [*command, f"http://127.0.0.1:{server.port}{path}"], capture_output=True, text=True, check=True
    )
    content, _, status = done.stdout.rpartition("\n")
    return int(status), json.loads(content)


# OpenAI's client


@pytest.mark.parametrize("model", ["three", "tiny/bert"])
def test_openais_client_gets_the_vectors_of_plain_floats(server: Any, client: openai.OpenAI, model: str) -> None:
    """It asks for base64 where nobody says otherwise."""
    plain = server.post("/v1/embeddings", model=model, input=TEXTS).json()
    for encoding in ({}, {"encoding_format": "float"}):
        answer = client.embeddings.create(model=model, input=TEXTS, **encoding)
        assert [entry.index for entry in answer.data] == [0, 1, 2]
        for entry, expected in zip(answer.data, plain["data"], strict=True):
            assert entry.embedding == pytest.approx(expected["embedding"], abs=1e-6)
        assert answer.usage.total_tokens == plain["usage"]["total_tokens"]
        if model == "three":
            assert answer.model_extra == {**answer.model_extra, "digest": plain["digest"], "version": "1.0.0"}


def test_openais_client_lists_and_retrieves_models(server: Any, client: openai.OpenAI) -> None:
    listed = {model.id: model for model in client.models.list()}
    assert {"tiny/bert", "three@1.0.0", "words@1.0.0"} <= set(listed)
    seven = client.models.retrieve("seven@1.0.0")
    assert seven.model_extra["parent"] == "tiny/bert" and seven.owned_by == "sparsehub"
    digest = seven.model_extra["digest"]
    for reference in ("seven", f"seven@{digest}"):
        assert client.models.retrieve(reference) == seven
    assert client.models.retrieve("tiny/bert").id == "tiny/bert"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("seven@2.0.0")


def test_openais_client_knows_our_errors(server: Any, client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        client.embeddings.create(model="thre", input="a")
    assert unknown.value.type == "not_found_error" and unknown.value.code == "UnknownTaskError"
    with pytest.raises(openai.BadRequestError) as empty:
        client.embeddings.create(model="three", input="")
    assert "is empty" in empty.value.message
    assert empty.value.response.headers["x-request-id"] == empty.value.request_id


def test_an_answers_headers_name_its_package(server: Any) -> None:
    response = server.post("/v1/classify", model="seven", input="the fox")
    assert response.headers["x-sparsehub-digest"] == response.json()["digest"]
    assert response.headers["x-sparsehub-task"] == response.json()["task"] == "seven@1.0.0"
    assert response.json()["version"] == "1.0.0"
    assert "x-sparsehub-digest" not in server.post("/v1/embeddings", model="backbone", input="a").headers


# vLLM, Cohere, Jina, by curl


@pytest.mark.parametrize("path", ["/classify", "/v1/classify"])
def test_classify_by_curl(server: Any, reference_of: Any, path: str) -> None:
    status, body = curl(server, path, {"model": "three", "input": TEXTS})
    assert status == 200
    for text, entry in zip(TEXTS, body["data"], strict=True):
        assert entry["probs"] == pytest.approx(reference_of("three")(text), abs=1e-4)


@pytest.mark.parametrize("path", ["/score", "/v1/score"])
def test_score_by_curl(scorer: Any, path: str) -> None:
    status, body = curl(scorer, path, {"model": "match", "text_1": "the fox", "text_2": TEXTS})
    assert status == 200 and body["object"] == "list"
    assert [set(entry) for entry in body["data"]] == [{"index", "object", "score"}] * 3


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
@pytest.mark.parametrize("model", ["match", "backbone"])
def test_rerank_puts_the_best_first(scorer: Any, path: str, model: str) -> None:
    _, scores = curl(scorer, "/v1/score", {"model": model, "text_1": "the fox", "text_2": TEXTS})
    by_index = {entry["index"]: entry["score"] for entry in scores["data"]}
    documents = [TEXTS[0], {"text": TEXTS[1]}, TEXTS[2]]
    status, body = curl(scorer, path, {"model": model, "query": "the fox", "documents": documents})
    assert status == 200
    found = {entry["index"]: entry["relevance_score"] for entry in body["results"]}
    assert found == pytest.approx(by_index, abs=1e-5)
    assert list(found) == sorted(found, key=lambda index: -found[index])
    assert [entry["document"]["text"] for entry in body["results"]] == [TEXTS[index] for index in found]
    assert ("digest" in body) == (model == "match")
    _, best = curl(
        scorer, path, {"model": model, "query": "the fox", "documents": TEXTS, "top_n": 1, "return_documents": False}
    )
    assert best["results"] == [
        {"index": next(iter(found)), "relevance_score": pytest.approx(max(found.values()), abs=1e-5)}
    ]


@pytest.mark.parametrize(
    "body",
    [
        {"model": "three", "query": "a", "documents": ["b"]},
        {"model": "match", "query": "a", "documents": []},
        {"model": "match", "query": "a", "documents": ["b", ""]},
        {"model": "match", "query": "a", "documents": ["b"], "top_n": 0},
        {"model": "match", "query": "a", "documents": [{"text": "b", "title": "c"}]},
        {"model": "match", "query": 5, "documents": ["b"]},
    ],
)
def test_what_cannot_be_ranked_is_400(scorer: Any, body: dict[str, Any]) -> None:
    status, answer = curl(scorer, "/v1/rerank", body)
    assert status == 400 and answer["error"]["type"] == "invalid_request_error"


# token classification


def test_every_word_has_its_place_in_the_text(server: Any, reference_of: Any) -> None:
    text = "  the quick\tbrown fox "
    body = server.post("/v1/classify", model="words", input=[text, {"text": "a dog"}, ["the", "fox"]]).json()
    first, second, third = (entry["words"] for entry in body["data"])
    assert [text[word["start"] : word["end"]] for word in first] == text.split() == [word["word"] for word in first]
    assert [(word["start"], word["end"]) for word in second] == [(0, 1), (2, 5)]
    assert [word["word"] for word in third] == ["the", "fox"] and "start" not in third[0]
    found = [score for word in first for score in word["probs"]]
    assert found == pytest.approx(reference_of("words")("the quick brown fox"), abs=1e-4)


@given(st.text(max_size=60))
def test_the_words_of_the_places_are_those_that_the_model_reads(text: str) -> None:
    words = words_of({"text": text}, "text")
    answer = Prediction(words=tuple(Prediction(label=str(index)) for index in range(len(words))))
    tagged = tagged_words(text, answer)
    assert [word["word"] for word in tagged] == words == [text[word["start"] : word["end"]] for word in tagged]


# the Open Inference Protocol


def bytes_of(name: str, data: list[Any], shape: list[int] | None = None) -> dict[str, Any]:
    return {"name": name, "datatype": "BYTES", "shape": shape or [len(data)], "data": data}


def infer(server: Any, task: str, *inputs: dict[str, Any], **more: Any) -> httpx.Response:
    return server.client.post(f"/v2/models/{task}/infer", json={"inputs": list(inputs), **more})


@pytest.mark.parametrize("task", ["seven", "seven@1.0.0", "seven/versions/1.0.0"])
def test_infer_gives_labels_and_probabilities(server: Any, reference_of: Any, task: str) -> None:
    body = infer(server, task, bytes_of("text", TEXTS), id="42").json()
    assert (body["model_name"], body["model_version"], body["id"]) == ("seven", "1.0.0", "42")
    assert body["parameters"] == {"digest": server.engine.tasks.find("seven").digest}
    label, probs = body["outputs"]
    assert (label["shape"], probs["shape"], probs["datatype"]) == ([3], [3, 7], "FP32")
    expected = [score for text in TEXTS for score in reference_of("seven")(text)]
    assert probs["data"] == pytest.approx(expected, abs=1e-4)
    rows = [probs["data"][at : at + 7] for at in (0, 7, 14)]
    assert label["data"] == [f"label{row.index(max(row))}" for row in rows]


def test_infer_of_the_other_kinds(server: Any, reference_of: Any) -> None:
    pair = infer(server, "pair", bytes_of("text_b", ["a dog"]), bytes_of("text_a", ["the fox"])).json()
    assert pair["outputs"][1]["data"] == pytest.approx(reference_of("pair")(["the fox", "a dog"]), abs=1e-4)
    rating = infer(server, "rating", bytes_of("text", [["the fox"], ["a dog"]], [2, 1])).json()
    assert rating["outputs"][0]["data"] == pytest.approx(
        [reference_of("rating")(t)[0] for t in ("the fox", "a dog")], abs=1e-4
    )
    words = infer(server, "words", bytes_of("text", ["the fox", "a"])).json()["outputs"][0]
    assert [len(json.loads(row)) for row in words["data"]] == [2, 1]
    choice = [bytes_of(name, [text]) for name, text in (("text", "the fox"), ("choice1", "a"), ("choice2", "b"))]
    found = infer(server, "choice", *choice, outputs=[{"name": "probs"}]).json()["outputs"]
    assert [output["name"] for output in found] == ["probs"]
    assert found[0]["data"] == pytest.approx(
        reference_of("choice")({"text": "the fox", "choice1": "a", "choice2": "b"}), abs=1e-4
    )
    vector = infer(server, "backbone", bytes_of("input", TEXTS)).json()["outputs"][0]
    assert vector["shape"] == [3, 32] and math.isclose(sum(x * x for x in vector["data"][:32]), 1, abs_tol=1e-4)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([bytes_of("txt", ["a"])], "the inputs are not this task's"),
        ([bytes_of("text", ["a"]), bytes_of("text", ["b"])], "the inputs are not this task's"),
        ([bytes_of("text", ["a"], [2])], "another size than its shape"),
        ([bytes_of("text", [""])], "is empty"),
        ([{**bytes_of("text", ["a"]), "datatype": "FP32"}], "datatype"),
        ([bytes_of("text", [1])], "data"),  # type: ignore[list-item]
        ([], "inputs"),
    ],
)
def test_tensors_that_do_not_fit_are_400(server: Any, inputs: list[Any], message: str) -> None:
    response = infer(server, "three", *inputs)
    assert response.status_code == 400
    assert message in response.json()["error"]["message"]


def test_fields_of_different_lengths_and_unknown_outputs_are_400(server: Any) -> None:
    uneven = infer(server, "pair", bytes_of("text_a", ["a", "b"]), bytes_of("text_b", ["a"]))
    assert uneven.status_code == 400 and "differ in length" in uneven.text
    unknown = infer(server, "three", bytes_of("text", ["a"]), outputs=[{"name": "logits"}])
    assert unknown.status_code == 400 and "no such output" in unknown.text
    assert infer(server, "nobody", bytes_of("text", ["a"])).status_code == 404


def test_the_protocol_describes_itself(server: Any) -> None:
    assert curl(server, "/v2")[1]["name"] == "sparsehub"
    assert curl(server, "/v2/health/live") == (200, {"live": True})
    assert curl(server, "/v2/health/ready") == (200, {"ready": True})
    status, ready = curl(server, "/v2/models/three/ready")
    assert (status, ready) == (200, {"name": "three", "ready": True})
    assert curl(server, "/v2/models/three/versions/9/ready")[0] == 404
    about = curl(server, "/v2/models/pair")[1]
    assert [tensor["name"] for tensor in about["inputs"]] == ["text_a", "text_b"]
    for name in ("three", "rating", "words", "choice"):
        about = curl(server, f"/v2/models/{name}/versions/1.0.0")[1]
        inputs = [bytes_of(tensor["name"], ["the fox"]) for tensor in about["inputs"]]
        outputs = infer(server, name, *inputs).json()["outputs"]
        assert [(o["name"], o["datatype"], [-1, *o["shape"][1:]]) for o in outputs] == [
            (o["name"], o["datatype"], o["shape"]) for o in about["outputs"]
        ]
