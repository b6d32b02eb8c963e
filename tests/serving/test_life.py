"""The life of an endpoint: it does not start on what is wrong, and outlives its workers. Real processes."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from serving.settings import STARTS
from serving.supervision import RESTARTS, WINDOW_SECONDS, _note_start, starting_worker
from sparsehub.backbone import load_backbone
from sparsehub.engine.swap import Swap
from sparsehub.errors import EngineError
from sparsehub.package import read_package
from sparsehub.patch import make_patch
from tests.support.endpoint_processes import environment_in, free_port, running
from tests.support.process_memory import is_mapped

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


def freeze(worker: psutil.Process) -> None:
    worker.suspend()
    while worker.status() != psutil.STATUS_STOPPED:
        time.sleep(0.001)


def killed_while_it_answers(manager: subprocess.Popen[bytes], port: int, path: str, body: dict[str, Any]) -> None:
    """Of a request that a worker surely has, and has not answered, the client gets an error in our shape."""
    worker = worker_of(manager)
    while True:
        connection = HTTPConnection("127.0.0.1", port, timeout=120)
        connection.request("GET", "/healthz")  # from here on it is the worker's connection
        assert connection.getresponse().read() is not None
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        time.sleep(0.02)
        freeze(worker)
        if not select.select([connection.sock], [], [], 0)[0]:
            break
        worker.resume()
    worker.kill()
    answer = connection.getresponse()
    assert answer.status == 503 and answer.headers["Retry-After"] == "5" and answer.headers["Connection"] == "close"
    check_error(json.loads(answer.read()))


def check_error(body: dict[str, Any]) -> None:
    assert body["error"].keys() == {"message", "type", "param", "code"} and body["error"]["type"] == "server_error"
    assert body["error"]["message"].startswith("the worker that had this request was killed")


def killed_while_it_streams(
    manager: subprocess.Popen[bytes], client: httpx.Client, path: str, body: dict[str, Any]
) -> None:
    """A stream that was begun ends with an event that is an error; its body ends as HTTP has it."""
    for _ in range(3):  # a text that was said before the worker was killed is whole
        worker, events = worker_of(manager), list[str]()
        with client.stream("POST", path, json={**body, "max_tokens": 120, "stream": True}, timeout=120) as stream:
            for number, line in enumerate(line for line in stream.iter_lines() if line):
                events.append(line)
                if number == 2:
                    worker.kill()
        if events[-1] != "data: [DONE]":
            break
    check_error(json.loads(events[-1].removeprefix("data: ")))
    assert len(events) >= 4 and all("choices" in json.loads(event.removeprefix("data: ")) for event in events[:-1])


def checks_of_the_arena(client: httpx.Client) -> dict[str, float]:
    families = {family.name: family for family in text_string_to_metric_families(client.get("/metrics").text)}
    return {sample.labels["outcome"]: sample.value for sample in families["sparsehub_arena_checks"].samples}


def arenas_of(backbone: Path, package: Path) -> list[bytes]:
    """The bytes of an arena, of the backbone's own weights and with those of a task in their place."""
    loaded = load_backbone(backbone)
    (buffer,) = loaded.arena.buffers.values()
    own, patch = buffer.numpy().tobytes(), make_patch(loaded, read_package(package).delta)
    Swap(loaded.arena).to(patch)
    return [own, buffer.numpy().tobytes()]


def holds_one_of(arenas: list[bytes], worker: psutil.Process) -> bool:
    """Whether a worker, which does nothing meanwhile, has one of them in its memory."""
    freeze(worker)
    try:
        return any(is_mapped(worker.pid, arena) for arena in arenas)
    finally:
        worker.resume()


def test_a_killed_worker_comes_back_with_exact_weights(
    tmp_path: Path, speakers: Any, says: Callable[..., list[int]]
) -> None:
    """Killed while texts are generated, in its next start, and while a batch runs: whoever waits for an answer gets an
    error, the next request is answered, and as plain transformers answers it. The weights are exact: the arena of the
    last worker is byte for byte what is loaded here."""
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
        killed_while_it_streams(manager, client, "/v1/completions", body)
        wait_for_line(tmp_path / "server.log", "is started again, 1 of 5 times")
        kill(worker_of(manager))  # the next one, in its start
        assert answered(client, body) == expected
        killed_while_it_answers(
            manager, port, "/v1/completions", {**body, "max_tokens": 120, "n": 16, "temperature": 1}
        )
        assert answered(client, body) == expected
        batch = {"model": "backbone", "input": ["KING: a long text to embed " * 4] * 500}
        killed_while_it_answers(manager, port, "/v1/embeddings", batch)
        assert answered(client, body) == expected
        wait_until(lambda: checks_of_the_arena(client)["made"] > 0)
        assert checks_of_the_arena(client)["failed"] == 0
        worker, arenas = worker_of(manager), arenas_of(speakers.folder, package)
        wait_until(lambda: holds_one_of(arenas, worker))  # soon: a switch may have been under way
        manager.kill()
        worker.wait(60)  # it ends with its manager
    log = (tmp_path / "server.log").read_text()
    assert "the worker ended and is started again, 4 of 5 times" in log and "closed connections" not in log


def wait_until(met: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not met():
        assert time.monotonic() < end
        time.sleep(0.1)


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
