"""The service as users start it: `sparsehub serve`, `bentoml serve`, `bentoml build`. Real processes, real sockets."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from serving.settings import Settings
from tests.support.endpoint_processes import ROOT, environment_in, free_port, is_left, running

pytestmark = pytest.mark.slow
STOP_SECONDS = 20


@dataclass(frozen=True)
class Endpoint:
    """A service that runs, and a client of it."""

    port: int
    process: subprocess.Popen[bytes]
    client: httpx.Client


@pytest.fixture(scope="module")
def hub(suite: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder hub with two tasks."""
    from sparsehub.hub import open_hub

    folder = tmp_path_factory.mktemp("hub")
    for name in ("three", "seven"):
        open_hub(folder).publish(suite[name])
    return folder


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return environment_in(tmp_path)


@pytest.fixture(scope="module")
def endpoint(hub: Path, tiny_tasks: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    """`sparsehub serve`, started once: the last test that uses it ends it."""
    folder, port = tmp_path_factory.mktemp("endpoint"), free_port()
    command = [sys.executable, "-m", "sparsehub", "serve", "--backbone", str(tiny_tasks.folder), "--hub", str(hub)]
    with running([*command, "--port", str(port)], environment_in(folder), folder, port) as (process, client):
        yield Endpoint(port, process, client)


def check_answers(client: httpx.Client, tiny_tasks: Any, suite: Mapping[str, Path]) -> None:
    for name in ("three", "seven"):
        response = client.post("/v1/classify", json={"model": name, "input": ["the fox", "a dog"]})
        assert response.status_code == 200, response.text
        for text, entry in zip(("the fox", "a dog"), response.json()["data"], strict=True):
            assert entry["probs"] == pytest.approx(tiny_tasks.reference(suite[name])(text), abs=1e-4)
    assert len(client.get("/v1/models").json()["data"]) == 3


def check_metrics(client: httpx.Client, rows: float) -> None:
    families = {family.name: family for family in text_string_to_metric_families(client.get("/metrics").text)}
    assert families["sparsehub_tasks"].samples[0].value == 2
    counted = [s.value for s in families["sparsehub_rows"].samples if s.labels == {"task": "three", "outcome": "ok"}]
    assert counted == ([rows] if rows else [])
    routes = [s for s in families["sparsehub_requests"].samples if s.labels["route"] == "/v1/classify"]
    assert len(routes) == (1 if rows else 0)
    assert any(name.startswith("bentoml_") for name in families)


def check_errors(client: httpx.Client) -> None:
    unknown = client.post("/v1/classify", json={"model": "thre", "input": "a"})
    assert unknown.status_code == 404 and "did you mean 'three'" in unknown.json()["error"]["message"]
    for path in ("/v1/nothing", "/nothing"):
        response = client.get(path)
        assert response.status_code == 404
        assert response.json()["error"]["type"] == "not_found_error"
    wrong = client.get("/v1/classify")
    assert wrong.status_code == 405 and wrong.json()["error"]["type"] == "invalid_request_error"


def check_end(process: subprocess.Popen[bytes], port: int) -> None:
    """SIGTERM ends it in time, and nothing of it stays behind."""
    process.send_signal(signal.SIGTERM)
    check_gone(process, port)


def check_gone(process: subprocess.Popen[bytes], port: int) -> None:
    process.wait(STOP_SECONDS)
    end = time.monotonic() + 5
    while is_left(process.pid) and time.monotonic() < end:
        time.sleep(0.1)
    assert not is_left(process.pid), "a process stayed behind"
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", port), timeout=1).close()


def test_sparsehub_serve(endpoint: Endpoint, tiny_tasks: Any, suite: Mapping[str, Path]) -> None:
    check_metrics(endpoint.client, rows=0)
    check_answers(endpoint.client, tiny_tasks, suite)
    check_metrics(endpoint.client, rows=2)
    check_errors(endpoint.client)


def test_a_request_that_has_begun_outlives_sigterm(endpoint: Endpoint) -> None:
    """Its head is there when the signal comes, its body only when nobody else is answered any more."""
    body = b'{"model": "three", "input": "the fox"}'
    head = "POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nConnection: close\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", endpoint.port), timeout=60) as begun:
        begun.sendall(head.encode())
        assert begun.recv(100).startswith(b"HTTP/1.1 100")
        endpoint.process.send_signal(signal.SIGTERM)
        _wait_until_silent(endpoint.port)
        begun.sendall(body)
        answer = b"".join(iter(lambda: begun.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 200") and b'"digest"' in answer
    check_gone(endpoint.process, endpoint.port)


def _wait_until_silent(port: int) -> None:
    end = time.monotonic() + STOP_SECONDS
    while time.monotonic() < end:
        try:
            httpx.get(f"http://127.0.0.1:{port}/healthz", timeout=1, trust_env=False)
        except httpx.TransportError:
            return
        time.sleep(0.1)
    pytest.fail("it still answers others")


def test_bentoml_serve_reads_the_same_settings_from_variables(
    hub: Path, environment: dict[str, str], tmp_path: Path, tiny_tasks: Any, suite: Mapping[str, Path]
) -> None:
    port = free_port()
    environment |= Settings(str(tiny_tasks.folder), hub=str(hub), tasks=("three", "seven@1.0.0")).to_environment()
    command = [sys.executable, "-m", "bentoml", "serve", "serving.service:SparsehubService"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    with running(command, environment, tmp_path, port) as (process, client):
        check_answers(client, tiny_tasks, suite)
        check_end(process, port)


def test_bentoml_build_packs_the_service(environment: dict[str, str], tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    skipped: Callable[..., Any] = shutil.ignore_patterns("__pycache__")
    for name in ("sparsehub", "serving"):
        shutil.copytree(ROOT / name, project / name, ignore=skipped)
    (project / "sparsehub" / "kernels" / "_native.abi3.so").write_bytes(b"built")
    for name in ("bentofile.yaml", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, project)
    (project / "notes").mkdir()
    (project / "notes" / "README.md").write_text("not the service's")
    environment["PYTHONPATH"] = str(project)
    command = [sys.executable, "-m", "bentoml", "build", "--output", "tag"]
    built = subprocess.run(command, env=environment, cwd=project, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    (source,) = (tmp_path / "bentoml" / "bentos" / "sparsehub").glob("*/src")
    packed = {str(path.relative_to(source)) for path in source.rglob("*.py")}
    expected = {
        str(path.relative_to(project)) for name in ("sparsehub", "serving") for path in (project / name).rglob("*.py")
    }
    assert packed == expected and [path.parent for path in source.rglob("README.md")] == [source]
    assert (source / "sparsehub" / "kernels" / "_native.abi3.so").read_bytes() == b"built"
    check_image(source.parent / "env")


def check_image(env: Path) -> None:
    """The image that `bentoml containerize` would build: our packages, no root, the service's port."""
    dockerfile = (env / "docker" / "Dockerfile").read_text()
    steps = [line.split(maxsplit=1) for line in dockerfile.splitlines() if line[:1].isupper()]
    assert ["FROM", "python:3.11-slim AS base-container"] in steps
    assert ["ARG", "BENTOML_DO_NOT_TRACK=True"] in steps
    assert [rest for name, rest in steps if name == "USER"] == ["bentoml"] and ["EXPOSE", "3000"] in steps
    wanted = yaml.safe_load((ROOT / "bentofile.yaml").read_text())["python"]["packages"]
    installed = (env / "python" / "requirements.txt").read_text().splitlines()
    assert set(wanted) <= set(installed) and any(line.startswith("bentoml==") for line in installed)
