"""What the front of a Ray Serve endpoint does with replicas that are lost, late or silent: no Ray runs here."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

ray = pytest.importorskip("ray", reason="Ray Serve needs ray (pip install 'sparsehub[ray]')")

from serving.ray import ingress  # noqa: E402 - it needs ray
from serving.settings import Settings  # noqa: E402

Play = Callable[[int], AsyncIterator[list[dict[str, Any]]]]
START = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]}
WHOLE = [START, {"type": "http.response.body", "body": b'{"right": true}'}]
LOST = ray.exceptions.ActorDiedError


class Handle:
    """Stands for Ray's handle. play: what the replica of each try does; of the tasks it has one, and a pattern fits
    two."""

    def __init__(self, play: Play):
        self._play, self.placed, self.cancelled, self.questions, self.tasks = play, [], 0, 0, []
        self.answer = self.serves = self

    def options(self, *, stream: bool, multiplexed_model_id: str) -> Handle:
        self.placed.append(multiplexed_model_id)
        return self

    def remote(self, *asked: Any) -> Any:
        if len(asked) == 1:
            self.questions += 1
            fitting = ["support-a", "support-b"] if asked[0] == ["support-*"] else []
            return asyncio.sleep(0, [task for task in asked[0] if task in ("topic", "tone")] + fitting)
        self.tasks.append(asked[2])
        return Response(self, self._play(len(self.placed)))


class Response:
    def __init__(self, handle: Handle, messages: AsyncIterator[list[dict[str, Any]]]):
        self._handle, self._messages = handle, messages

    def __aiter__(self) -> AsyncIterator[list[dict[str, Any]]]:
        return self._messages

    def cancel(self) -> None:
        self._handle.cancelled += 1


def ask(handle: Handle, path: str = "/v1/classify", model: Any = "topic", timeout: float = 5.0) -> list[Any]:
    """The messages that a client gets."""
    asked = ingress.Ingress(Settings("tiny", catalog="hub#it", answer_timeout=timeout), handle)
    body = json.dumps({"model": model}).encode()
    scope = {"type": "http", "method": "POST", "path": path, "headers": [], "query_string": b""}
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body}

    async def send(message: Any) -> None:
        sent.append(message)

    async def main() -> None:
        response = await asked(None)
        await response(scope, receive, send)

    asyncio.run(main())
    return sent


def lost_until(tries: int) -> Play:
    async def play(attempt: int) -> AsyncIterator[list[dict[str, Any]]]:
        if attempt < tries:
            raise LOST()
        yield WHOLE

    return play


def test_a_request_that_was_lost_is_sent_again() -> None:
    handle = Handle(lost_until(3))
    assert ask(handle) == WHOLE
    assert handle.placed == ["topic"] * 3 and handle.questions == 1


def test_after_the_last_try_it_is_503_in_the_shape_of_all_errors() -> None:
    handle = Handle(lost_until(100))
    start, body = ask(handle)
    assert start["status"] == 503 and json.loads(body["body"])["error"]["code"] == "ReplicaLostError"
    assert len(handle.placed) == ingress.TRIES


def test_what_changes_the_catalogue_is_sent_once() -> None:
    handle = Handle(lost_until(2))
    assert ask(handle, "/v1/admin/catalog/add")[0]["status"] == 503
    assert len(handle.placed) == 1


def test_a_stream_that_breaks_off_says_so_and_is_not_repeated() -> None:
    async def play(attempt: int) -> AsyncIterator[list[dict[str, Any]]]:
        yield [START, {"type": "http.response.body", "body": b"data: {}\n\n", "more_body": True}]
        raise LOST()

    handle = Handle(play)
    *_, last = ask(handle, "/v1/completions")
    assert b"ReplicaLostError" in last["body"] and b"[DONE]" not in last["body"] and not last["more_body"]
    assert len(handle.placed) == 1


def test_a_replica_that_is_lost_after_its_answer_has_answered() -> None:
    async def play(attempt: int) -> AsyncIterator[list[dict[str, Any]]]:
        yield WHOLE
        raise LOST()

    handle = Handle(play)
    assert ask(handle) == WHOLE and len(handle.placed) == 1


def test_a_replica_that_is_silent_is_504(monkeypatch: pytest.MonkeyPatch) -> None:
    async def play(attempt: int) -> AsyncIterator[list[dict[str, Any]]]:
        await asyncio.sleep(60)
        yield WHOLE

    monkeypatch.setattr(ingress, "PATIENCE", 0.05)
    handle = Handle(play)
    start, _ = ask(handle, timeout=0.05)
    assert start["status"] == 504 and handle.cancelled == 1


@pytest.mark.parametrize(("model", "questions"), [("backbone", 0), ("tiny", 0), ("what-a-stranger-invents", 1)])
def test_what_is_no_task_is_placed_by_nothing(model: str, questions: int) -> None:
    handle = Handle(lost_until(0))
    assert ask(handle, model=model) == WHOLE
    assert handle.placed == [""] and handle.questions == questions


@pytest.mark.parametrize(
    ("model", "tasks"),
    [
        (["tone@1.0.0", "topic", "tone"], ["tone", "topic"]),
        (["what-a-stranger-invents", "tone", "backbone"], ["tone"]),
        ("support-*", ["support-a", "support-b"]),
    ],
)
def test_a_request_for_several_tasks_is_placed_by_all_that_there_are(model: Any, tasks: list[str]) -> None:
    handle = Handle(lost_until(2))
    assert ask(handle, model=model) == WHOLE
    assert handle.placed == [",".join(tasks)] * 2 and handle.tasks == [tasks] * 2
