"""What a client of each route gets."""

from __future__ import annotations

import base64
import json
import re
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from sparsehub.package import read_package
from sparsehub.package.task_spec import HeadSpec

TEXTS = ["the fox", "who wrote the book", "a bad ending"]
ENVELOPE = {"id", "object", "created", "model", "data", "usage"}


def digest_of(server: Any, name: str) -> str:
    return server.engine.tasks.find(name).digest


def test_classify_answers_in_vllms_shape_with_the_digest(server: Any, reference_of: Any) -> None:
    response = server.post("/v1/classify", model="seven", input=TEXTS)
    assert response.status_code == 200
    body = response.json()
    assert set(body) == ENVELOPE | {"task", "version", "digest", "labels"}
    assert body["object"] == "list" and body["model"] == "seven" and body["id"].startswith("classify-")
    assert body["task"] == "seven@1.0.0" and body["digest"] == digest_of(server, "seven")
    assert body["labels"] == [f"label{i}" for i in range(7)]
    for index, (text, entry) in enumerate(zip(TEXTS, body["data"], strict=True)):
        scores = reference_of("seven")(text)
        assert entry["index"] == index and entry["num_classes"] == 7
        assert entry["probs"] == pytest.approx(scores, abs=1e-4)
        assert entry["label"] == f"label{scores.index(max(scores))}"
    tokens = sum(len(server.engine.tokenizer(text)["input_ids"]) for text in TEXTS)
    assert body["usage"] == {"prompt_tokens": tokens, "completion_tokens": 0, "total_tokens": tokens}


def test_an_embedding_answers_with_its_own_vectors_and_their_cosines(
    new_server: Callable[..., Any], tiny_tasks: Any
) -> None:
    """Pooled by the first token and not scaled, as its head says; the plain backbone's are means of unit length."""
    from sentence_transformers import SentenceTransformer

    head = HeadSpec("none", "first", normalize=False)
    folder = tiny_tasks.write("vectors", "embedding", fields=("a", "b"), seed=12, head=head)
    model = SentenceTransformer(str(tiny_tasks.materialised(folder)), device="cpu", local_files_only=True)
    vectors = model.encode(TEXTS)
    cosines = (vectors @ vectors.T) / np.linalg.norm(vectors, axis=1) / np.linalg.norm(vectors, axis=1)[:, None]
    with new_server(start=True) as server:
        server.engine.add(read_package(folder))
        found = server.post("/v1/embeddings", model="vectors", input=TEXTS).json()
        assert found["digest"] == digest_of(server, "vectors")
        assert np.abs(np.array([entry["embedding"] for entry in found["data"]]) - vectors).max() < 1e-4
        scores = server.post("/v1/score", model="vectors", text_1=TEXTS[0], text_2=TEXTS).json()
        assert scores["digest"] == found["digest"]
        assert [entry["score"] for entry in scores["data"]] == pytest.approx(cosines[0].tolist(), abs=1e-4)
        ranked = server.post("/v1/rerank", model="vectors", query=TEXTS[0], documents=TEXTS).json()["results"]
        assert [entry["index"] for entry in ranked] == np.argsort(-cosines[0], kind="stable").tolist()
        assert server.client.get("/v2/models/vectors").json()["outputs"][0]["shape"] == [-1, 32]
        tensor = {"name": "input", "datatype": "BYTES", "shape": [3], "data": TEXTS}
        tensors = server.client.post("/v2/models/vectors/infer", json={"inputs": [tensor]}).json()
        assert np.abs(np.array(tensors["outputs"][0]["data"]).reshape(3, -1) - vectors).max() < 1e-4
        assert tensors["parameters"]["digest"] == found["digest"]
        refused = server.post("/v1/classify", model="vectors", input=TEXTS)
        assert refused.status_code == 400 and "gives vectors" in refused.json()["error"]["message"]
        alone = server.post("/v1/score", model="vectors", input=TEXTS)
        assert alone.status_code == 400 and "vectors scores two texts" in alone.json()["error"]["message"]


def test_a_text_gets_every_label_that_reaches_its_threshold(server: Any, reference_of: Any) -> None:
    body = server.post("/v1/classify", model="several", input=TEXTS).json()
    assert body["thresholds"] == pytest.approx([0.3, 0.4, 0.5, 0.6])
    tensor = {"name": "text", "datatype": "BYTES", "shape": [len(TEXTS)], "data": TEXTS}
    tensors = server.client.post("/v2/models/several/infer", json={"inputs": [tensor]}).json()["outputs"]
    for text, entry, packed in zip(TEXTS, body["data"], tensors[0]["data"], strict=True):
        scores = reference_of("several")(text)
        each = zip(body["labels"], scores, body["thresholds"], strict=True)
        assert entry["probs"] == pytest.approx(scores, abs=1e-4)
        assert entry["labels"] == json.loads(packed) == [label for label, score, least in each if score >= least]
        assert "label" not in entry
    assert tensors[1]["shape"] == [len(TEXTS), 4]


@pytest.mark.parametrize(
    ("name", "item", "asked"),
    [
        ("three", "the fox", "the fox"),
        ("three", {"text": "the fox"}, "the fox"),
        ("pair", [["the fox", "a dog"]], ["the fox", "a dog"]),
        ("pair", {"text_a": "the fox", "text_b": "a dog"}, ["the fox", "a dog"]),
        ("choice", {"text": "the fox", "choice1": "a", "choice2": "b"}, None),
    ],
)
def test_one_input_may_stand_alone_or_as_an_object(
    server: Any, reference_of: Any, name: str, item: Any, asked: Any
) -> None:
    body = server.post("/v1/classify", model=name, input=item).json()
    assert len(body["data"]) == 1
    assert body["data"][0]["probs"] == pytest.approx(reference_of(name)(asked or item), abs=1e-4)


def test_token_classification_answers_word_by_word(server: Any, reference_of: Any) -> None:
    body = server.post("/v1/classify", model="words", input=["the quick fox", {"text": ["a", "dog"]}]).json()
    assert [len(entry["words"]) for entry in body["data"]] == [3, 2]
    found = [score for word in body["data"][0]["words"] for score in word["probs"]]
    assert found == pytest.approx(reference_of("words")("the quick fox"), abs=1e-4)
    assert all(word["label"] in body["labels"] for entry in body["data"] for word in entry["words"])


@pytest.mark.parametrize("field", ["input", "text_1"])
def test_score_gives_a_regressions_value(server: Any, reference_of: Any, field: str) -> None:
    body = server.post("/v1/score", model="rating@1.0.0", **{field: TEXTS}).json()
    assert set(body) == ENVELOPE | {"task", "version", "digest"}
    assert body["digest"] == digest_of(server, "rating")
    assert [entry["index"] for entry in body["data"]] == [0, 1, 2]
    assert all(entry["object"] == "score" for entry in body["data"])
    expected = [reference_of("rating")(text)[0] for text in TEXTS]
    assert [entry["score"] for entry in body["data"]] == pytest.approx(expected, abs=1e-4)


def test_the_backbone_scores_two_texts_by_their_cosine(server: Any) -> None:
    same = server.post("/v1/score", model="backbone", text_1="the fox", text_2=["the fox", "a bad ending"]).json()
    assert same["data"][0]["score"] == pytest.approx(1)
    vectors = server.post("/v1/embeddings", model="backbone", input=["the fox", "a bad ending"]).json()["data"]
    cosine = sum(a * b for a, b in zip(vectors[0]["embedding"], vectors[1]["embedding"], strict=True))
    assert same["data"][1]["score"] == pytest.approx(cosine, abs=1e-5)


@pytest.mark.parametrize("model", ["tiny/bert", "backbone", "three"])
def test_embeddings_as_floats_and_in_base64_are_the_same_unit_vectors(server: Any, model: str) -> None:
    plain = server.post("/v1/embeddings", model=model, input=TEXTS).json()
    packed = server.post("/v1/embeddings", model=model, input=TEXTS, encoding_format="base64").json()
    assert ("digest" in plain) == (model == "three")
    for index, (one, other) in enumerate(zip(plain["data"], packed["data"], strict=True)):
        assert one["object"] == "embedding" and one["index"] == index
        data = base64.b64decode(other["embedding"])
        assert list(struct.unpack(f"<{len(data) // 4}f", data)) == pytest.approx(one["embedding"], abs=1e-6)
        assert len(one["embedding"]) == 32
        assert sum(x * x for x in one["embedding"]) == pytest.approx(1, abs=1e-5)


def test_models_lists_the_backbone_and_every_task(server: Any, suite: Any) -> None:
    body = server.client.get("/v1/models").json()
    assert body["object"] == "list"
    backbone, *tasks = body["data"]
    assert backbone["id"] == "tiny/bert" and backbone["parent"] is None
    assert [task["id"] for task in tasks] == [f"{name}@1.0.0" for name in suite]
    seven = tasks[1]
    assert seven["object"] == "model" and seven["parent"] == "tiny/bert"
    assert seven["digest"] == digest_of(server, "seven")
    assert seven["labels"] == [f"label{i}" for i in range(7)] and seven["fields"] == ["text"]
    assert seven["nnz"] > 0 and seven["bytes"] > seven["nnz"] * 4
    for task in tasks:
        assert re.fullmatch(r"sha256:[0-9a-f]{64}", task["digest"])


def test_what_models_lists_can_stand_in_model(server: Any) -> None:
    for task in server.client.get("/v1/models").json()["data"]:
        for reference in (task["id"], *([task["id"].split("@")[0] + "@" + task["digest"]] if "digest" in task else [])):
            body = server.post("/v1/embeddings", model=reference, input="the fox").json()
            assert body.get("digest") == task.get("digest")


def test_health(server: Any) -> None:
    assert server.client.get("/healthz").status_code == 200
    ready = server.client.get("/readyz")
    assert (ready.status_code, ready.text) == (200, "ready\n")


def test_an_unhealthy_engine_is_alive_but_not_ready_and_says_503(halted: Callable[..., Any]) -> None:
    server = halted()
    server.engine.arena.swap.healthy = False
    assert server.client.get("/healthz").status_code == 200
    assert server.client.get("/readyz").status_code == 503
    response = server.post("/v1/classify", model="three", input="the fox")
    assert response.status_code == 503
    assert response.json()["error"]["type"] == "server_error"
    assert "takes no more work" in response.json()["error"]["message"]
    assert "sparsehub_healthy 0.0" in server.client.get("/metrics").text


def test_metrics_are_prometheus_text_that_counts_what_happened(server: Any) -> None:
    before = samples(server)
    server.post("/v1/classify", model="three", input=TEXTS)
    server.post("/v1/classify", model="nobody", input=TEXTS)
    server.client.get("/nowhere")
    after = samples(server)

    def grew(name: str, **labels: str) -> float:
        key = (name, tuple(sorted(labels.items())))
        return after.get(key, 0) - before.get(key, 0)

    assert grew("sparsehub_rows_total", task="three", outcome="ok") == 3
    assert grew("sparsehub_tokens_total") > 3
    assert grew("sparsehub_batches_total", mode="swap") + grew("sparsehub_batches_total", mode="mixed") >= 1
    assert sum(grew("sparsehub_measured_seconds_total", mode=mode) for mode in ("swap", "mixed")) > 0
    assert grew("sparsehub_lookups", was="ready") == 1
    assert grew("sparsehub_requests_total", route="/v1/classify", status="200") == 1
    assert grew("sparsehub_requests_total", route="/v1/classify", status="404") == 1
    assert grew("sparsehub_requests_total", route="(unknown)", status="404") == 1
    assert after["sparsehub_tasks", ()] == 7
    assert after["sparsehub_healthy", ()] == 1
    assert after["sparsehub_waiting_rows", ()] == 0
    assert after["sparsehub_resident_tasks", (("tier", "device"),)] == 7
    held = sum(status.nbytes for status in server.engine.status())
    assert after["sparsehub_resident_bytes", (("tier", "device"),)] == held > 0
    assert grew("sparsehub_phase_seconds_count", phase="forward") >= 1


def samples(server: Any) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    response = server.client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


def test_the_api_describes_itself(server: Any) -> None:
    paths = server.client.get("/openapi.json").json()["paths"]
    assert {"/v1/classify", "/v1/score", "/v1/embeddings", "/v1/models"} <= set(paths)
