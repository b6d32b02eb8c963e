"""Responses of many numbers: they are what short ones are, and nothing of them is written on the event loop."""

from __future__ import annotations

import asyncio
import json
import math
import threading
from collections.abc import Sequence
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st

from serving.protocol.base import ApiModel, UsageInfo
from serving.protocol.inference import OutputTensor
from serving.protocol.tasks import Classification, EmbeddingItem, EmbeddingsResponse, FailedItem, TaskAnswers
from serving.request import body
from serving.request.body import LONG, BodyRoute, is_long, written

USAGE = UsageInfo(prompt_tokens=1, completion_tokens=0, total_tokens=1)
NUMBERS = st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=9)


def embeddings(rows: Sequence[Any]) -> EmbeddingsResponse:
    data: list[Any] = [EmbeddingItem(object="embedding", index=i, embedding=row) for i, row in enumerate(rows)]
    return EmbeddingsResponse(id="embd-1", created=1, model='a "model"', object="list", data=data, usage=USAGE)


def nested(rows: Sequence[Any]) -> EmbeddingsResponse:
    """As of several tasks."""
    items = embeddings(rows).data
    parts: list[Any] = [
        TaskAnswers(index=i, object="task_answers", model="m", data=items, usage=USAGE) for i in range(3)
    ]
    return EmbeddingsResponse(id="embd-2", created=1, model=["a", "b"], object="list", data=parts, usage=USAGE)


def same(response: ApiModel) -> bool:
    return json.loads(written(response)) == json.loads(response.model_dump_json(exclude_unset=True))


@given(st.lists(NUMBERS, max_size=7), st.integers(1, 5), st.integers(1, 20))
def test_pieces_are_the_whole(rows: list[list[float]], piece: int, long: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(body, "PIECE", piece)
        patch.setattr(body, "LONG", long)
        assert same(embeddings(rows)) and same(nested(rows))
        numbers = [number for row in rows for number in row]
        assert same(OutputTensor(name="embedding", datatype="FP32", shape=[len(numbers)], data=numbers))
        label = Classification(index=0, label="a", probs=[0.5] * 9, num_classes=9)
        assert same(label) and same(UsageInfo(prompt_tokens=1, completion_tokens=2, total_tokens=3))


def test_a_number_that_is_none_is_null_as_elsewhere() -> None:
    tensor = OutputTensor(name="a", datatype="FP32", shape=[2], data=[math.nan, 1.0])
    assert json.loads(written(tensor))["data"] == [None, 1.0]


def test_what_is_long() -> None:
    assert not is_long(embeddings([[0.0] * 9] * 9)) and is_long(embeddings([[0.0] * 101] * 99))
    assert is_long(nested([[0.0] * LONG]))
    assert not is_long(FailedItem.model_construct()) and not is_long(UsageInfo.model_construct())


def test_a_route_writes_them_in_another_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    router, app, threads = APIRouter(route_class=BodyRoute), FastAPI(), list[str]()

    @router.post("/{rows}", response_model=EmbeddingsResponse, response_model_exclude_unset=True)
    async def answer(rows: int) -> EmbeddingsResponse:
        threads.append(threading.current_thread().name)
        await asyncio.sleep(0)
        return embeddings([[0.25] * 384] * rows)

    def noted(response: ApiModel) -> bytes:
        threads.append(threading.current_thread().name)
        return written(response)

    monkeypatch.setattr(body, "written", noted)
    app.include_router(router)
    with TestClient(app) as client:
        short, long = client.post("/2"), client.post("/64")
    assert short.headers["content-type"] == long.headers["content-type"] == "application/json"
    assert short.json()["data"] == long.json()["data"][:2] and len(long.json()["data"]) == 64
    assert len(threads) == 3 and threads[0] == threads[1] != threads[2]
    properties = app.openapi()["paths"]["/{rows}"]["post"]["responses"]["200"]["content"]["application/json"]
    assert properties["schema"]["$ref"].endswith("EmbeddingsResponse")
