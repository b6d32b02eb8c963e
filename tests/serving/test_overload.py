"""Many clients, impatient clients, a full queue."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import json
import math
import random
import socket
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

from serving.request.results import results
from serving.settings import Settings
from sparsehub.engine import Limits
from sparsehub.engine.task_handle import TaskHandle
from sparsehub.errors import CancelledError, HubError

SENTENCE = "the quick brown fox jumps over lazy dog good film great cast bad ending who wrote book river"


def ask(server: Any, name: str, *texts: str) -> Any:
    return server.post("/v1/classify", model=name, input=list(texts))


def test_interleaved_requests_of_many_clients_each_get_their_own_tasks_answer(server: Any, reference_of: Any) -> None:
    names = ("three", "seven", "words")
    digests = {name: server.engine.tasks.find(name).digest for name in names}

    def client(seed: int) -> list[str]:
        choices, wrong = random.Random(seed), []
        for round_ in range(6):
            name = names[(seed + round_) % 3]
            texts = [
                " ".join(choices.choices(SENTENCE.split(), k=choices.randint(1, 8)))
                for _ in range(choices.randint(1, 3))
            ]
            response = ask(server, name, *texts)
            assert response.status_code == 200, response.text
            body = response.json()
            assert body["digest"] == digests[name] and body["model"] == name
            for text, entry in zip(texts, body["data"], strict=True):
                found = [p for word in entry.get("words", [entry]) for p in word["probs"]]
                if found != pytest.approx(reference_of(name)(text), abs=1e-4):
                    wrong.append(f"{name}: {text}")
        return wrong

    for name in names:
        reference_of(name)
    with ThreadPoolExecutor(16) as pool:
        assert [wrong for own in pool.map(client, range(16)) for wrong in own] == []


def test_a_full_queue_is_429_with_retry_after_and_nothing_else_breaks(halted: Callable[..., Any]) -> None:
    server = halted(Limits(queue_rows=4))
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(ask, server, "three", "the fox", "a dog") for _ in range(2)]
        server.until(lambda: server.engine.waiting == 4)
        refused = ask(server, "seven", "the fox")
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]["type"] == "rate_limit_error"
        assert server.client.get("/readyz").status_code == 200
        assert server.client.get("/v1/models").status_code == 200
        assert "sparsehub_waiting_rows 4.0" in server.client.get("/metrics").text
        while server.engine.step():
            pass
        assert [future.result(20).status_code for future in waiting] == [200, 200]
    server.engine.start()
    assert ask(server, "seven", "the fox").status_code == 200


def send_raw(server: Any, name: str, *texts: str) -> socket.socket:
    """A request whose answer nobody has read yet."""
    body = json.dumps({"model": name, "input": texts}).encode()
    head = f"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
    head += "Content-Type: application/json"
    connection = socket.create_connection(("127.0.0.1", server.port))
    connection.sendall(head.encode() + b"\r\n\r\n" + body)
    return connection


def test_the_rows_of_a_client_that_leaves_are_dropped_and_others_are_answered(halted: Callable[..., Any]) -> None:
    server = halted(Limits(queue_rows=5))
    leaver = send_raw(server, "three", "the fox", "a dog", "a film")
    server.until(lambda: server.engine.waiting == 3)
    queued = next(iter(server.engine._scheduler._queues.values()))
    with ThreadPoolExecutor(1) as pool:
        stayer = pool.submit(ask, server, "three", "the fox")
        server.until(lambda: server.engine.waiting == 4)
        gone = queued[:3]
        leaver.close()
        server.until(lambda: all(row.future.cancelled() for row in gone))
        server.until(lambda: 'status="499"' in server.client.get("/metrics").text)
        while server.engine.step():
            pass
        assert stayer.result(20).status_code == 200
    metrics = server.client.get("/metrics").text
    assert 'sparsehub_rows_total{outcome="ok",task="three"} 1.0' in metrics
    assert server.engine.waiting == 0


def test_a_client_that_leaves_while_its_rows_run_harms_nobody(halted: Callable[..., Any]) -> None:
    server = halted()
    leaver = send_raw(server, "three", "the fox")
    server.until(lambda: server.engine.waiting == 1)
    running = server.engine._scheduler.next_batch(0)
    leaver.close()
    server.until(lambda: 'status="499"' in server.client.get("/metrics").text)
    for row in running:
        row.future.set_result(None)  # the answer that nobody reads
    server.engine.start()
    assert ask(server, "three", "the fox").status_code == 200


def test_a_deadline_that_passes_is_504(halted: Callable[..., Any]) -> None:
    server = halted()
    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(ask, server, "three", "the fox")
        server.until(lambda: server.engine.waiting == 1)
        for row in next(iter(server.engine._scheduler._queues.values())):
            row.deadline = 0.0
        assert not server.engine.step()
        response = late.result(20)
    assert response.status_code == 504
    assert "deadline" in response.json()["error"]["message"]


def test_stopping_turns_what_comes_away_and_answers_what_waits(halted: Callable[..., Any]) -> None:
    server = halted()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(ask, server, "three", "the fox")
        server.until(lambda: server.engine.waiting == 1)
        server.engine.start()
        server.engine.stop()
        assert waiting.result(20).status_code == 200
    assert ask(server, "three", "the fox").status_code == 503
    assert server.client.get("/readyz").status_code == 503


def test_what_stopping_hands_back_is_503_with_retry_after(halted: Callable[..., Any]) -> None:
    server = halted()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(ask, server, "three", "the fox")
        server.until(lambda: server.engine.waiting == 1)
        server.engine.stop()
        response = waiting.result(20)
    assert response.status_code == 503 and int(response.headers["retry-after"]) > 0
    assert response.json()["error"]["code"] == "StoppingError"


def test_a_task_replaced_between_look_and_queue_answers_with_its_own_labels(
    halted: Callable[..., Any], tiny_tasks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = halted()
    newer, sound = tiny_tasks.read("three", labels=5, version="2.0.0", seed=21), server.engine.acquire

    def replaced(*arguments: Any, **options: Any) -> Any:
        server.engine.add(newer)
        return sound(*arguments, **options)

    monkeypatch.setattr(server.engine, "acquire", replaced)
    server.engine.start()
    body = ask(server, "three", "the fox").json()
    assert body["digest"] == newer.digest
    assert len(body["labels"]) == len(body["data"][0]["probs"]) == 5


def test_a_task_replaced_after_it_was_acquired_still_answers_with_its_own_labels(
    halted: Callable[..., Any], tiny_tasks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = halted()
    newer, sound = tiny_tasks.read("three", labels=5, version="2.0.0", seed=21), server.engine.prepare
    older = server.engine.info("three").digest

    def replaced(*arguments: Any, **options: Any) -> Any:
        server.engine.add(newer)
        return sound(*arguments, **options)

    monkeypatch.setattr(server.engine, "prepare", replaced)
    server.engine.start()
    body = ask(server, "three", "the fox").json()
    assert body["digest"] == older
    assert len(body["labels"]) == len(body["data"][0]["probs"]) == 3


def test_a_row_whose_load_failed_is_told_so_though_another_request_has_loaded_the_task(
    halted: Callable[..., Any],
) -> None:
    engine = halted().engine
    (lost,), (held,) = (engine.classify("three", ["the fox"]).futures for _ in range(2))
    first, error = next(iter(engine._scheduler._queues.values()))[0], HubError("no answer")
    task, residency = first.payload.handle.task, engine._residency
    first.payload = dataclasses.replace(first.payload, handle=TaskHandle(task, residency, error=error))
    assert engine.step() and lost.exception(1) is error and held.result(1).label
    (gone,) = engine.classify("three", ["the fox"]).futures
    (row,) = next(iter(engine._scheduler._queues.values()))
    row.payload = dataclasses.replace(row.payload, handle=TaskHandle(task, residency))  # cancelled, and evicted
    assert engine._planner.cost_per_token([row]) == math.inf
    assert engine.step() and isinstance(gone.exception(1), CancelledError) and not engine.step()


def test_a_request_that_is_cancelled_takes_its_rows_back_without_a_word(caplog: pytest.LogCaptureFixture) -> None:
    class Waiting:
        app = SimpleNamespace(state=SimpleNamespace(service=SimpleNamespace(settings=Settings("tiny", hub="hub"))))

        async def receive(self) -> dict[str, str]:
            await asyncio.Event().wait()
            return {}

    async def cancelled() -> list[Future[int]]:
        futures: list[Future[int]] = [Future(), Future()]
        request = asyncio.create_task(results(Waiting(), futures))  # type: ignore[arg-type]
        await asyncio.sleep(0.01)
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        return futures

    assert all(future.cancelled() for future in asyncio.run(cancelled()))
    gc.collect()  # asyncio complains when it drops what nobody looked at
    assert caplog.records == []
