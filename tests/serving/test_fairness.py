"""One key floods the endpoint; another asks for a row. Batches run when the test says so: no clock decides."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from serving.auth import Authenticator, Key, KeyRing
from serving.auth.keys import MOST_WEIGHT, parse_keys
from sparsehub.engine import Limits
from sparsehub.errors import UsageError
from sparsehub.files import sha256_bytes

KEYS = {"greedy": 1.0, "light": 1.0, "heavy": 3.0}
RING = KeyRing(tuple(Key(name, sha256_bytes(name.encode()), weight=weight) for name, weight in KEYS.items()))


@pytest.fixture
def crowded(new_server: Callable[..., Any]) -> Iterator[Any]:
    limits = Limits(queue_rows=120, batch_rows=8)
    with new_server(start=False, limits=limits, access=Authenticator(RING)) as server:
        yield server


def ask(server: Any, key: str, task: str, rows: int) -> httpx.Response:
    body, headers = {"model": task, "input": ["the fox"] * rows}, {"Authorization": f"Bearer {key}"}
    return httpx.post(f"{server.client.base_url}/v1/classify", json=body, headers=headers, timeout=60, trust_env=False)


def queued(server: Any, pool: ThreadPoolExecutor, key: str, task: str, rows: int) -> Future[httpx.Response]:
    """A request whose rows wait in the queue by now."""
    before = server.engine.waiting
    asked = pool.submit(ask, server, key, task, rows)
    server.until(lambda: server.engine.waiting == before + rows)
    return asked


def test_a_light_keys_row_is_in_the_next_batch_though_a_greedy_one_has_queued_many(crowded: Any) -> None:
    with ThreadPoolExecutor(4) as pool:
        flood = [queued(crowded, pool, "greedy", "three", 30) for _ in range(2)]
        assert crowded.engine.step()  # the batch that runs when the light one comes
        light = queued(crowded, pool, "light", "seven", 1)
        assert crowded.engine.step()
        assert light.result(20).status_code == 200 and not any(each.done() for each in flood)
        while crowded.engine.step():
            pass
        assert [each.result(20).status_code for each in flood] == [200, 200]


def test_keys_that_ask_for_all_they_can_get_are_served_by_their_weights(crowded: Any) -> None:
    with ThreadPoolExecutor(4) as pool:
        asked = [queued(crowded, pool, key, "three", 40) for key in ("light", "heavy")]
        for _ in range(5):
            assert crowded.engine.step()
        text = httpx.get(f"{crowded.client.base_url}/v1/models", headers={"Authorization": "Bearer light"}).text
        assert "three" in text  # others are answered meanwhile
        waiting = {tenant.name: rows for tenant, rows in crowded.engine._scheduler._queues.rows.items()}
        ran = {key: 40 - waiting.get(key, 0) for key in ("light", "heavy")}
        assert ran["light"] + ran["heavy"] > 20 and ran["heavy"] >= 2 * ran["light"], ran
        while crowded.engine.step():
            pass
        assert [each.result(20).status_code for each in asked] == [200, 200]


def test_a_greedy_key_is_429_before_the_queue_is_full_and_others_still_get_in(crowded: Any) -> None:
    with ThreadPoolExecutor(4) as pool:
        asked = [queued(crowded, pool, "greedy", "three", 60)]
        refused = ask(crowded, "greedy", "three", 1)
        assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1
        assert "60 rows of greedy wait" in refused.json()["error"]["message"]
        asked.append(queued(crowded, pool, "light", "three", 10))
        while crowded.engine.step():
            pass
        assert [each.result(20).status_code for each in asked] == [200, 200]


def test_metrics_tell_keys_apart_by_the_names_of_the_key_file(crowded: Any) -> None:
    crowded.engine.start()
    assert ask(crowded, "light", "three", 3).status_code == 200
    assert ask(crowded, "a stranger's guess", "three", 1).status_code == 401
    text = crowded.metrics.text(crowded.engine)
    assert 'sparsehub_key_rows_total{key="light"} 3.0' in text
    assert 'sparsehub_key_requests_total{key="light",status="200"} 1.0' in text
    assert 'sparsehub_key_requests_total{key="anonymous",status="401"} 1.0' in text and "guess" not in text


@pytest.mark.parametrize("weight", [0, -1, MOST_WEIGHT * 2, True, "1"])
def test_a_weight_that_is_none_is_refused(weight: Any) -> None:
    key = {"name": "a", "sha256": sha256_bytes(b"x"), "weight": weight}
    with pytest.raises(UsageError, match="weight"):
        parse_keys(json.dumps({"keys": [key]}).encode())
