"""Requests that nobody would send: every one is answered, in one of the documented ways. `make soak` sends 100,000
(SPARSEHUB_FUZZ_REQUESTS)."""

from __future__ import annotations

import logging
import os
import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.support import SOAK
from tests.support.request_fuzzing import LABELS, TEXTS, Request, mutated

CLIENTS = 4 if SOAK else 2
REQUESTS = int(os.environ.get("SPARSEHUB_FUZZ_REQUESTS", "100000")) // 2 if SOAK else 40  # of each kind
STATUSES = {200, 307, 400, 404, 405, 413, 429}  # 307: an address with one slash too many
LONGEST = 0.5  # seconds that the event loop may be late, on a machine that is left alone
log = logging.getLogger("fuzzing")
pytestmark = [pytest.mark.slow, pytest.mark.soak]


def fuzz(server: Any, requests: Any, seed: int) -> tuple[Counter[int], list[str]]:
    """Statuses, and what was answered wrongly."""
    statuses, wrong, choices = Counter[int](), list[str](), random.Random(seed)
    headers = {"content-type": "application/json"}
    with httpx.Client(base_url=server.client.base_url, timeout=120, trust_env=False) as client:
        for _ in range(REQUESTS // CLIENTS):
            request = mutated(requests, choices)
            try:
                answer = client.post(request.path, content=request.body, headers=headers)
            except httpx.RemoteProtocolError:  # a connection that was kept may be closed just as it is used
                answer = client.post(request.path, content=request.body, headers=headers)
            statuses[answer.status_code] += 1
            if why := fault_of(answer):
                wrong.append(f"{why}: {answer.status_code} {answer.text[:300]} to {shown(request)}")
    return statuses, wrong


def fault_of(answer: httpx.Response) -> str:
    """What is wrong with an answer; empty where nothing is."""
    if answer.status_code not in STATUSES:
        return "a status that is not documented"
    if answer.status_code == 307:
        return ""
    if answer.status_code == 200:
        return "" if answer.headers["content-type"].startswith(("application/json", "text/event-stream")) else "no JSON"
    error = answer.json().get("error")
    if not isinstance(error, dict) or set(error) != {"message", "type", "param", "code"} or not error["message"]:
        return "an error in another shape"
    return "an error that repeats the request" if len(answer.content) > 5000 else ""


def shown(request: Request) -> str:
    return f"{request.path} {request.body[:500]!r}"


@pytest.mark.parametrize(("fixture", "requests"), [("server", LABELS), ("language_server", TEXTS)])
def test_every_mutation_is_answered_in_a_documented_way(
    fixture: str, requests: Any, request: pytest.FixtureRequest
) -> None:
    server = request.getfixturevalue(fixture)
    assert [path for path, body in requests if server.post(path, **body).status_code != 200] == []
    with ThreadPoolExecutor(CLIENTS) as pool:
        found = list(pool.map(lambda seed: fuzz(server, requests, seed), range(CLIENTS)))
    statuses = sum((part for part, _ in found), Counter[int]())
    log.warning("%s, the event loop was %.3f s late at most", dict(statuses), server.metrics.worst_lag)
    assert [line for _, wrong in found for line in wrong] == []
    assert statuses[200] and statuses[400] > 10
    assert server.client.get("/readyz").status_code == 200 and server.engine.healthy
    assert not SOAK or server.metrics.worst_lag < LONGEST
    server.until(lambda: server.engine.waiting == 0)
