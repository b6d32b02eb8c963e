"""Mutations of valid requests, drawn from a seed: what comes of them is always the same."""

from __future__ import annotations

import copy
import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Choices = random.Random


@dataclass(frozen=True)
class Request:
    """What is sent."""

    path: str
    body: bytes


_ONE = {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a"]}
LABELS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("/v1/classify", {"model": "three", "input": ["the fox", "a dog"], "truncate_prompt_tokens": -1}),
    ("/v1/classify", {"model": "words", "input": [["the", "fox"], "a dog"], "user": "a"}),
    ("/v1/classify", {"model": "pair", "input": [["the fox", "a dog"]]}),
    ("/v1/classify", {"model": "three+seven*0.5", "input": "the fox"}),
    ("/v1/score", {"model": "rating", "input": "the fox"}),
    ("/v1/score", {"model": "backbone", "text_1": "the fox", "text_2": ["a dog", "a film"]}),
    ("/v1/rerank", {"model": "backbone", "query": "the fox", "documents": ["a dog", {"text": "a film"}], "top_n": 1}),
    ("/v1/embeddings", {"model": "three", "input": ["the fox"], "encoding_format": "base64", "dimensions": None}),
    ("/v1/embeddings", {"model": "backbone", "input": [[5, 6, 7], [8]]}),
    (
        "/v2/models/three/infer",
        {"id": "1", "inputs": [{"name": "text", "shape": [2], "datatype": "BYTES", "data": ["the fox", "a dog"]}]},
    ),
    ("/v2/models/three/versions/1.0.0/infer", {"inputs": [_ONE]}),
    ("/v1/classify", {"model": ["three", "seven@1.0.0", "words"], "input": ["the fox", "a dog"]}),
    ("/v1/score", {"model": ["rating", "three"], "input": "the fox"}),
    ("/v1/embeddings", {"model": ["three", "backbone"], "input": [[5, 6, 7], [8]]}),
    ("/v2/models/three,rating/infer", {"inputs": [{**_ONE, "name": "input"}], "outputs": [{"name": "three/probs"}]}),
)
TEXTS: tuple[tuple[str, dict[str, Any]], ...] = (
    (
        "/v1/completions",
        {"model": "gruff", "prompt": "the fox", "max_tokens": 2, "temperature": 1, "seed": 1, "n": 2},
    ),
    ("/v1/completions", {"model": "backbone", "prompt": [[5, 6]], "max_tokens": 1, "stop": ["a"], "logprobs": 2}),
    ("/v1/completions", {"model": "meek", "prompt": ["a", "b"], "max_tokens": 1, "stream": True}),
    (
        "/v1/chat/completions",
        {"model": "gruff", "messages": [{"role": "user", "content": "the fox"}], "max_tokens": 2, "top_p": 0.5},
    ),
)
ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 1 << 31, -(1 << 63), 1 << 64, 10**30, 0.5, -0.0, 1e308, math.nan, math.inf),
    *("", " ", "a", "\x00", "\ud800", "\u202e", "é" * 300, "a" * 5000, "https://example.org"),
    *("backbone", "three@1.0.0", "../three", "*", "three+"),
    *([], [[]], {}, {"a": 1}, [None], ["a", 1], {"text": "a"}, ["the fox"] * 40, [[1] * 70]),
)
Place = tuple[Any, Any]  # a list or an object, and an index or a name in it


def mutated(requests: Sequence[tuple[str, dict[str, Any]]], choices: Choices) -> Request:
    """A valid request with one to three changes, of its values or of its bytes."""
    path, body = copy.deepcopy(choices.choice(requests))
    for _ in range(choices.choice((1, 1, 1, 2, 3))):
        choices.choice(CHANGES)(body, choices)
    data = json.dumps(body, ensure_ascii=choices.random() < 0.5).encode(errors="surrogatepass")
    if choices.random() < 0.2:
        data = damaged(data, choices)
    if choices.random() < 0.05:
        path = choices.choice(
            ("/v1/classify", "/v1/rerank", "/v1/completions", path + "/", path.replace("three", "%00"))
        )
    return Request(path, data)


def damaged(data: bytes, choices: Choices) -> bytes:
    """Bytes of JSON of which some are changed, cut out or put in."""
    at = choices.randrange(len(data) + 1)
    kind = choices.randrange(4)
    if kind == 0:
        return data[:at]
    if kind == 1:
        return data[:at] + choices.randbytes(choices.randint(1, 4)) + data[at:]
    if kind == 2:
        return data[:at] + choices.choice((b'"', b"}", b"[", b",", b"\\", b"\xff", b"\x00", b"1e999")) + data[at:]
    return data[: at // 2] + data[at:]


def replaced(body: dict[str, Any], choices: Choices) -> None:
    """Something else in the place of a value."""
    if places := _places(body):
        holder, at = choices.choice(places)
        holder[at] = copy.deepcopy(choices.choice(ODD))


def removed(body: dict[str, Any], choices: Choices) -> None:
    """A value less."""
    if places := _places(body):
        holder, at = choices.choice(places)
        del holder[at]


def added(body: dict[str, Any], choices: Choices) -> None:
    """A field more, perhaps one that the API has."""
    names = (
        "stream",
        "n",
        "best_of",
        "tools",
        "logit_bias",
        "seed",
        "stop",
        "echo",
        "suffix",
        "dimensions",
        "id",
        "x" * 80,
    )
    body[choices.choice(names)] = copy.deepcopy(choices.choice(ODD))


def wrapped(body: dict[str, Any], choices: Choices) -> None:
    """A value inside a list, or many times."""
    if places := _places(body):
        holder, at = choices.choice(places)
        holder[at] = [holder[at]] * choices.choice((1, 2, 30))


CHANGES: tuple[Callable[[dict[str, Any], Choices], None], ...] = (replaced, replaced, replaced, removed, added, wrapped)


def _places(body: Any) -> list[Place]:
    """Every place in a body, however deep."""
    names = list(body) if isinstance(body, dict) else range(len(body)) if isinstance(body, list) else ()
    found: list[Place] = [(body, name) for name in names]
    return found + [place for name in names for place in _places(body[name])]
