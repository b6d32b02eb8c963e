"""Connections of clients that send too much or too little, against an endpoint that runs."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving.settings import Settings
from tests.serving.test_bentoml import Endpoint, environment_in, free_port, running

pytestmark = pytest.mark.slow
SECONDS = 2.0
HALF = b"GET /healthz HTTP/1.1\r\nHost: loc"


@pytest.fixture(scope="module")
def endpoint(
    tiny_tasks: Any, suite: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Endpoint]:
    import sys

    folder, port = tmp_path_factory.mktemp("crowded"), free_port()
    bounds: dict[str, Any] = {"header_seconds": SECONDS, "connections": 40, "address_connections": 40}
    settings = Settings(str(tiny_tasks.folder), tasks=(str(suite["three"]),), **bounds)
    environment = {**environment_in(folder), **settings.to_environment()}
    command = [sys.executable, "-m", "bentoml", "serve", "serving.service:SparsehubService"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    # A connection for each request: one that is kept may be closed, being idle, just as the next request is sent on it.
    fresh = httpx.Limits(max_keepalive_connections=0)
    with (
        running(command, environment, folder, port) as (process, _),
        httpx.Client(base_url=f"http://127.0.0.1:{port}", limits=fresh, timeout=60, trust_env=False) as client,
    ):
        yield Endpoint(port, process, client)


def connected(endpoint: Endpoint, sent: bytes = b"") -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", endpoint.port), timeout=20)
    connection.sendall(sent)
    return connection


def ends(connection: socket.socket) -> bytes:
    """What comes until the endpoint closes; a connection that it keeps is an error."""
    with connection:
        try:
            return b"".join(iter(lambda: connection.recv(65536), b""))
        except ConnectionResetError:
            return b""


@pytest.mark.parametrize("sent", [b"", HALF, b"\r\n", b"POST /v1/classify HTTP/1.1\r\nHost: a\r\nX: "])
def test_silent_connections_and_half_heads_end(endpoint: Endpoint, sent: bytes) -> None:
    began = time.monotonic()
    several = [connected(endpoint, sent) for _ in range(10)]
    assert endpoint.client.get("/healthz").status_code == 200
    assert [ends(connection) for connection in several] == [b""] * 10
    assert time.monotonic() - began < SECONDS + 5


def test_a_head_byte_by_byte_ends(endpoint: Endpoint) -> None:
    connection, began = connected(endpoint, HALF), time.monotonic()
    with pytest.raises(OSError):
        while time.monotonic() - began < 20:
            connection.sendall(b"a")
            time.sleep(0.1)
    connection.close()
    assert time.monotonic() - began < SECONDS + 5


@pytest.mark.parametrize("size", [1 << 17, 20 << 20])
@pytest.mark.parametrize("start", [b"GET /healthz HTTP/1.1\r\nX: ", b"GET /"])
def test_a_large_head_is_refused_before_it_is_there(endpoint: Endpoint, start: bytes, size: int) -> None:
    connection, sent = connected(endpoint, start), 0
    try:
        while sent < size:
            connection.sendall(b"a" * 65536)
            sent += 65536
        connection.sendall(b" HTTP/1.1\r\nHost: a\r\n\r\n")
    except OSError:
        assert sent < 8 << 20
    assert ends(connection)[:12] in (b"HTTP/1.1 431", b"")
    assert endpoint.client.get("/healthz").status_code == 200


def test_a_head_just_below_the_bound_is_answered(endpoint: Endpoint) -> None:
    assert endpoint.client.get("/healthz", headers={"x": "a" * 60_000}).status_code == 200
    assert endpoint.client.get("/healthz", headers={"x": "a" * 70_000}).status_code == 431


def test_more_connections_than_allowed_are_refused(endpoint: Endpoint) -> None:
    several = [connected(endpoint) for _ in range(60)]
    answers = [ends(connection) for connection in several]
    assert sum(answer.startswith(b"HTTP/1.1 503") for answer in answers) >= 20
    assert b"" in answers
    assert endpoint.client.get("/healthz").status_code == 200


def test_paths_of_strangers_are_no_labels(endpoint: Endpoint) -> None:
    for number in range(30):
        assert endpoint.client.get(f"/{number}{'a' * 20_000}").status_code == 404
    text = endpoint.client.get("/metrics").text
    assert len(text) < 200_000 and "aaaaaa" not in text and 'endpoint="(other)"' in text


def test_two_endpoints_of_one_user_have_metrics_of_their_own(endpoint: Endpoint) -> None:
    import psutil

    worker = psutil.Process(endpoint.process.pid).children(recursive=True)[-1]
    folder = Path(worker.environ()["PROMETHEUS_MULTIPROC_DIR"])
    assert folder.name.startswith("sparsehub-metrics-") and any(folder.iterdir())
