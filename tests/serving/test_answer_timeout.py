"""An answer that takes too long: an error in our shape, asked once, and its work stops."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest

from serving.settings import SERVER_GRACE, Settings, server_timeout

LONG = {"model": "gruff", "prompt": "SAILOR:\n", "max_tokens": 140, "temperature": 1.5, "n": 40}


def test_a_text_that_takes_too_long_is_asked_once_and_its_work_stops(new_language_server: Callable[..., Any]) -> None:
    """By OpenAI's client with its retries on: it would send a bare 504 twice more."""
    asked: list[httpx.Request] = []
    with new_language_server(answer_timeout=0.15) as server:
        http = httpx.Client(trust_env=False, timeout=60, event_hooks={"request": [asked.append]})
        with (
            openai.OpenAI(
                base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none", max_retries=2, http_client=http
            ) as client,
            pytest.raises(openai.InternalServerError, match=r"not ready in time; found: 0.15 s; .*stream") as late,
        ):
            client.completions.create(**LONG)
        assert len(asked) == 1 and late.value.status_code == 504
        assert (late.value.code, late.value.type) == ("AnswerTimeoutError", "server_error")
        engine = server.engine
        server.until(lambda: engine.generator.usage().running == 0)
        assert engine.generator.usage().pages == 0 and engine.generator.usage().waiting == 0
        assert engine.generator.usage().tokens < 40 * 130
        short = server.post("/v1/completions", model="gruff", prompt="SAILOR:\n", max_tokens=1)
        assert short.status_code == 200


def test_a_stream_may_take_longer_once_it_has_begun(
    new_language_server: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with new_language_server(answer_timeout=0.5) as server:
        run = server.engine.generator._runner.step

        def slow(mode: str) -> Any:
            time.sleep(0.1)
            return run(mode)

        monkeypatch.setattr(server.engine.generator._runner, "step", slow)
        body = {**LONG, "n": 1, "max_tokens": 12}
        whole = server.client.post("/v1/completions", json=body)
        streamed = server.client.post("/v1/completions", json={**body, "stream": True})
    assert (whole.status_code, streamed.status_code) == (504, 200)
    assert streamed.text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize("path", ["/v1/classify", "/v1/embeddings"])
def test_rows_that_take_too_long_are_taken_back(new_server: Callable[..., Any], path: str) -> None:
    """The model thread of this server does not run."""
    with new_server(start=False, answer_timeout=0.1) as server:
        answer = server.post(path, model="three", input=["the fox", "a dog"])
        assert answer.status_code == 504 and answer.headers["x-should-retry"] == "false"
        assert answer.json()["error"]["code"] == "AnswerTimeoutError"
        server.until(lambda: not server.engine.step())
        assert server.engine.waiting == 0


def test_a_stream_that_does_not_begin_is_given_up_too(
    new_language_server: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with new_language_server(answer_timeout=0.1) as server:
        run = server.engine.generator._runner.step

        def slow(mode: str) -> Any:
            time.sleep(0.5)
            return run(mode)

        monkeypatch.setattr(server.engine.generator._runner, "step", slow)
        answer = server.client.post("/v1/completions", json={**LONG, "n": 1, "stream": True})
        assert answer.status_code == 504 and answer.json()["error"]["code"] == "AnswerTimeoutError"
        server.until(lambda: server.engine.generator.usage().running == 0)
        assert server.engine.generator.usage().pages == 0


def test_the_server_around_the_app_waits_longer() -> None:
    """BentoML would answer in a shape of its own."""
    assert server_timeout({}) == Settings.answer_timeout + SERVER_GRACE
    assert server_timeout({"SPARSEHUB_ANSWER_TIMEOUT": "7"}) == 7 + SERVER_GRACE
    assert server_timeout({"SPARSEHUB_ANSWER_TIMEOUT": "soon"}) > SERVER_GRACE
    from serving.service import SparsehubService

    assert SparsehubService.config["traffic"]["timeout"] > Settings.answer_timeout
