"""The life of an endpoint: it does not start on what is wrong, and outlives its workers. Real processes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from serving.settings import STARTS
from serving.supervision import RESTARTS, WINDOW_SECONDS, _note_start, starting_worker
from sparsehub.errors import EngineError
from tests.support.endpoint_processes import environment_in, free_port, running

pytestmark = pytest.mark.slow
SERVE = [sys.executable, "-m", "sparsehub", "serve"]
BENTOML = [sys.executable, "-m", "bentoml", "serve", "serving.service:SparsehubService", "--host", "127.0.0.1"]


def ended(command: list[str], folder: Path, seconds: float = 60, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {**environment_in(folder), **more}
    return subprocess.run(
        command, env=environment, cwd=folder, capture_output=True, text=True, timeout=seconds, check=False
    )


def test_a_wrong_argument_is_one_line_and_exit_code_2(tmp_path: Path, tiny_tasks: Any) -> None:
    done = ended([*SERVE, "--backbone", str(tiny_tasks.folder), "--hub", "nowhere"], tmp_path, 10)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: --hub: there is no hub at") and done.stderr.count("\n") == 1


def test_bentoml_serve_names_the_variable(tmp_path: Path, tiny_tasks: Any) -> None:
    command = [*BENTOML, "--port", str(free_port())]
    done = ended(command, tmp_path, SPARSEHUB_BACKBONE=str(tiny_tasks.folder), SPARSEHUB_KEYS="nowhere")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: SPARSEHUB_KEYS: there is no file nowhere")


def test_a_worker_that_cannot_start_ends_the_service_with_the_reason(tmp_path: Path, tiny_tasks: Any) -> None:
    """A model of a kind that transformers does not know is found out only when it is loaded."""
    shutil.copytree(tiny_tasks.folder, tmp_path / "strange")
    config = tmp_path / "strange" / "config.json"
    config.write_text(config.read_text().replace('"bert"', '"strange"'))
    done = ended([*SERVE, "--backbone", "strange", "--port", str(free_port())], tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr + done.stdout
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert "transformers cannot load" in line


def test_a_worker_is_started_again_a_few_times(tmp_path: Path) -> None:
    for _ in range(RESTARTS + 1):
        _note_start(tmp_path)
    with pytest.raises(EngineError, match="the worker ended 6 times within 10 minutes"):
        _note_start(tmp_path)
    (tmp_path / "starts").write_text("\n".join([str(time.time() - WINDOW_SECONDS - 1)] * 9))
    _note_start(tmp_path)


def test_without_a_record_errors_are_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(STARTS, raising=False)
    with pytest.raises(EngineError), starting_worker():
        raise EngineError("no")


def worker_of(manager: subprocess.Popen[bytes]) -> psutil.Process:
    """The worker, once there is one that was not killed."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        for child in psutil.Process(manager.pid).children():
            if child.status() != psutil.STATUS_ZOMBIE and "_bentoml_impl.worker" in " ".join(child.cmdline()):
                return child
        time.sleep(0.05)
    pytest.fail("there is no worker")


def kill(worker: psutil.Process) -> None:
    os.kill(worker.pid, signal.SIGKILL)


def answered(client: httpx.Client, body: dict[str, Any]) -> str:
    """The text of the next request that reaches a worker; those that were under way have lost theirs."""
    end = time.monotonic() + 90
    while time.monotonic() < end:
        try:
            response = client.post("/v1/completions", json=body, timeout=60)
        except httpx.TransportError:
            time.sleep(0.2)
            continue
        assert response.status_code == 200, response.text
        return str(response.json()["choices"][0]["text"])
    pytest.fail("nobody answers")


def kill_in_generation(manager: subprocess.Popen[bytes], client: httpx.Client, body: dict[str, Any]) -> None:
    """The client of a text that was begun has its connection closed, not a text that looks whole."""
    worker = worker_of(manager)
    with (
        pytest.raises(httpx.TransportError),
        client.stream("POST", "/v1/completions", json={**body, "max_tokens": 120, "stream": True}) as stream,
    ):
        for number, line in enumerate(stream.iter_lines()):
            assert "[DONE]" not in line
            if number == 2:
                kill(worker)


def kill_in_a_batch(manager: subprocess.Popen[bytes], client: httpx.Client) -> None:
    worker = worker_of(manager)
    texts = ["KING: a long text to embed " * 4] * 500
    threading.Timer(0.05, kill, [worker]).start()
    with pytest.raises(httpx.TransportError):
        while True:
            assert client.post("/v1/embeddings", json={"model": "backbone", "input": texts}).status_code == 200


def test_a_killed_worker_comes_back_with_exact_weights(
    tmp_path: Path, speakers: Any, says: Callable[..., list[int]]
) -> None:
    """Killed while a text is generated, in its next start, and while batches run: the next request is answered, and as
    plain transformers answers it, so the weights are exact."""
    from transformers import AutoTokenizer

    package = speakers.write("talk", "text-generation", seed=5)
    tokenizer = AutoTokenizer.from_pretrained(speakers.folder)
    prompt = tokenizer("KING")["input_ids"]
    expected = tokenizer.decode(says(package, prompt, 8))
    body = {"model": "talk", "prompt": prompt, "max_tokens": 8, "temperature": 0}
    port = free_port()
    command = [*SERVE, "--backbone", str(speakers.folder), "--task", str(package), "--port", str(port)]
    with running(command, environment_in(tmp_path), tmp_path, port) as (manager, client):
        check_banner((tmp_path / "server.log").read_text(), port)
        assert answered(client, body) == expected
        kill_in_generation(manager, client, body)
        wait_for_line(tmp_path / "server.log", "started again, 1 of 5 times")
        kill(worker_of(manager))  # the next one, in its start
        assert answered(client, body) == expected
        kill_in_a_batch(manager, client)
        assert answered(client, body) == expected
    assert "the worker ended and is started again, 3 of 5 times" in (tmp_path / "server.log").read_text()


def wait_for_line(log: Path, text: str) -> None:
    end = time.monotonic() + 60
    while text not in log.read_text():
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.05)


def check_banner(log: str, port: int) -> None:
    """It says what is served and where, and its request works as it stands."""
    assert f"ready: http://127.0.0.1:{port}\n" in log and "  tasks     talk\n" in log
    (curl,) = [line.removeprefix("  try").strip() for line in log.splitlines() if line.startswith("  try")]
    shown = subprocess.run(["sh", "-c", curl], capture_output=True, text=True, check=True).stdout
    assert '"text_completion"' in shown and '"talk@' in shown
