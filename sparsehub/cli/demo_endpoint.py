"""The demo's endpoint: `sparsehub serve` in a process of its own, and what the demo asks of it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsehub.errors import UsageError
from sparsehub.task_ref import parse_model

START_SECONDS, FOLLOW_SECONDS = 120, 60  # until the endpoint answers; until it serves a task that was added


@dataclass(frozen=True)
class Endpoint:
    """A running endpoint of this machine."""

    url: str

    def ask(self, route: str, body: dict[str, Any] | None = None) -> Any:
        """The JSON of a response; raises `OSError`."""
        data = json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(f"{self.url}{route}", data, {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response)

    def serves(self, names: set[str]) -> bool:
        """Whether all of these tasks can stand in `model`."""
        try:
            return names <= {parse_model(entry["id"]).task.name for entry in self.ask("/v1/models")["data"]}
        except (OSError, ValueError, KeyError):
            return False

    def wait_for(self, names: set[str], seconds: float, process: subprocess.Popen[bytes] | None = None) -> float:
        """Wait until these tasks are served, and say how long that took; raises `UsageError` where it does not come."""
        began = time.monotonic()
        while time.monotonic() - began < seconds and (process is None or process.poll() is None):
            if self.serves(names):
                return time.monotonic() - began
            time.sleep(0.2)
        raise UsageError("the endpoint does not serve the demo's tasks", found=", ".join(sorted(names)))


@contextmanager
def running_endpoint(backbone: str, catalog: str, port: int, log: Path, names: set[str]) -> Iterator[Endpoint]:
    """An endpoint that follows a catalogue, once it serves `names`; ended with the block. Its output goes to `log`."""
    # Compiled passes would be ready when the demo ends, and until then their compiler would take one of the two cores.
    serve = ["serve", "--backbone", backbone, "--catalog", catalog, "--compile", "off"]
    command = [sys.executable, "-m", "sparsehub", *serve]
    with log.open("wb") as file:
        process = subprocess.Popen([*command, "--port", str(port)], stdout=file, stderr=subprocess.STDOUT)
    endpoint = Endpoint(f"http://127.0.0.1:{port}")
    try:
        try:
            endpoint.wait_for(names, START_SECONDS, process)
        except UsageError as error:
            raise UsageError(f"the endpoint did not start, see {log}") from error
        yield endpoint
    finally:
        process.terminate()
        process.wait(timeout=60)
