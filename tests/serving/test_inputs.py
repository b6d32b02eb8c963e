"""Inputs as other servers take them: token ids, vectors of a named size, a number of tokens to cut at."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

LONG = "the fox " * 50  # more tokens than a task takes here
SIZE, LIMIT, BACKBONE_LIMIT = 32, 48, 64


@pytest.fixture(scope="module")
def client(server: Any) -> Iterator[openai.OpenAI]:
    http = httpx.Client(trust_env=False, timeout=60)
    base = f"http://127.0.0.1:{server.port}/v1"
    with openai.OpenAI(base_url=base, api_key="none", max_retries=0, http_client=http) as client:
        yield client


def vectors(client: openai.OpenAI, **body: Any) -> list[list[float]]:
    return [entry.embedding for entry in client.embeddings.create(**body).data]


def near(expected: list[list[float]]) -> list[Any]:
    return [pytest.approx(vector, abs=1e-5) for vector in expected]


@pytest.mark.parametrize("model", ["three", "backbone"])
def test_token_ids_have_the_vector_of_their_text(server: Any, client: openai.OpenAI, model: str) -> None:
    texts = ["the fox", "a bad ending"]
    ids = [server.engine.tokenizer(text)["input_ids"] for text in texts]
    wanted = vectors(client, model=model, input=texts)
    assert vectors(client, model=model, input=ids) == near(wanted)
    assert vectors(client, model=model, input=ids[0]) == near(wanted[:1])
    assert client.embeddings.create(model=model, input=ids).usage.prompt_tokens == sum(map(len, ids))


def test_token_ids_are_taken_as_they_are(server: Any, client: openai.OpenAI) -> None:
    bare = server.engine.tokenizer("the fox", add_special_tokens=False)["input_ids"]
    found = client.embeddings.create(model="three", input=bare)
    assert found.usage.prompt_tokens == len(bare)
    assert [found.data[0].embedding] != near(vectors(client, model="three", input="the fox"))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ([1, 99_999], "token that the backbone does not have; found: 99999"),
        ([[1], [-1]], "input 1 holds a token"),
        ([[]], "input 0 has no tokens"),
        ([[1], "a"], "malformed"),
        ([True], "malformed"),
        ([1.5], "malformed"),
        ([5] * 49, "too long"),
    ],
)
def test_what_is_no_token_is_refused(client: openai.OpenAI, given: Any, says: str) -> None:
    with pytest.raises(openai.BadRequestError, match=says):
        client.embeddings.create(model="three", input=given)


def test_a_vector_has_its_own_size_and_no_other(client: openai.OpenAI) -> None:
    plain = vectors(client, model="three", input="the fox")
    assert vectors(client, model="three", input="the fox", dimensions=SIZE) == near(plain)
    assert vectors(client, model="three", input="the fox", extra_body={"dimensions": None}) == near(plain)
    with pytest.raises(openai.BadRequestError, match=f"dimensions is not supported; found: 16; expected: {SIZE}") as no:
        client.embeddings.create(model="three", input="the fox", dimensions=16)
    assert no.value.param == "dimensions" and no.value.code == "UnsupportedFieldError"


@pytest.mark.parametrize(("model", "limit"), [("three", LIMIT), ("backbone", BACKBONE_LIMIT)])
def test_an_embeddings_input_is_cut_at_a_number_of_tokens(server: Any, model: str, limit: int) -> None:
    ids = server.engine.tokenizer(LONG, add_special_tokens=False)["input_ids"]
    for cut, tokens in ((5, 5), (limit, limit), (-1, limit)):
        for given in (LONG, ids):
            answer = server.post("/v1/embeddings", model=model, input=given, truncate_prompt_tokens=cut)
            assert answer.status_code == 200 and answer.json()["usage"]["prompt_tokens"] == tokens
    answer = server.post("/v1/embeddings", model=model, input=LONG, truncate_prompt_tokens=limit + 1)
    assert answer.status_code == 400
    assert f"too large; found: {limit + 1}; expected: at most {limit}" in answer.json()["error"]["message"]


def test_an_input_that_is_cut_is_the_shorter_input(server: Any) -> None:
    """With its special tokens, which count."""
    for path, model in (("/v1/classify", "three"), ("/v1/score", "rating"), ("/v1/embeddings", "three")):
        cut = server.post(path, model=model, input=LONG, truncate_prompt_tokens=4).json()
        short = server.post(path, model=model, input="the fox").json()
        assert cut["usage"]["prompt_tokens"] == 4
        name = next(name for name in ("probs", "score", "embedding") if name in cut["data"][0])
        assert cut["data"][0][name] == pytest.approx(short["data"][0][name], abs=1e-5)


def test_documents_are_cut_too(server: Any) -> None:
    body = {"model": "backbone", "query": "the fox", "documents": [LONG, "a dog"]}
    assert server.post("/v1/rerank", **body).status_code == 400
    answer = server.post("/v1/rerank", **body, truncate_prompt_tokens=4)
    assert answer.status_code == 200
    first = answer.json()["results"][0]
    assert first["index"] == 0 and first["relevance_score"] == pytest.approx(1, abs=1e-5)  # it is the query now


def test_no_cut_leaves_nothing(server: Any) -> None:
    none = server.post("/v1/classify", model="three", input=LONG, truncate_prompt_tokens=0)
    assert none.status_code == 400 and none.json()["error"]["param"] == "truncate_prompt_tokens"
    one = server.post("/v1/classify", model="three", input=LONG, truncate_prompt_tokens=1)
    assert one.status_code == 400 and "no room for the special tokens" in one.json()["error"]["message"]
