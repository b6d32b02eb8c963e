"""Endpoints as users start them: real processes, each ended with the block that it serves in."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

ROOT = Path(__file__).parents[2]
START_SECONDS = 120


def environment_in(folder: Path) -> dict[str, str]:
    """The environment of a process that writes nothing outside a folder and calls nobody."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("SPARSEHUB_", "BENTOML_"))}
    own = {"BENTOML_HOME": folder / "bentoml", "SPARSEHUB_CACHE": folder / "cache", "TMPDIR": folder / "tmp"}
    (folder / "tmp").mkdir()
    return {
        **kept,
        **{key: str(path) for key, path in own.items()},
        "BENTOML_DO_NOT_TRACK": "True",
        "HF_HUB_OFFLINE": "1",
        "SPARSEHUB_COMPILE": "off",  # a compiler beside the test would take a core for minutes
        "PYTHONPATH": str(ROOT),
    }


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextmanager
def running(command: list[str], environment: Mapping[str, str], folder: Path, port: int) -> Iterator[Any]:
    """A started process and a client of it, once it is ready; both are gone afterwards."""
    log = folder / "server.log"
    with log.open("w") as out:
        process = subprocess.Popen(
            command, env=dict(environment), cwd=folder, stdout=out, stderr=out, start_new_session=True
        )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False) as client:
            _wait_until_ready(process, client, log)
            yield process, client
    finally:
        end_all(process)


def end_all(process: subprocess.Popen[bytes]) -> None:
    """Kill a process manager and its workers, which have process groups of their own."""
    workers = []
    with suppress(psutil.NoSuchProcess):
        workers = psutil.Process(process.pid).children(recursive=True)
    if is_left(process.pid):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(10)
    for worker in workers:
        with suppress(psutil.NoSuchProcess):
            worker.kill()


def _wait_until_ready(process: subprocess.Popen[bytes], client: httpx.Client, log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text()
        try:
            if client.get("/readyz").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    pytest.fail(f"it never became ready:\n{log.read_text()}")


def is_left(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
