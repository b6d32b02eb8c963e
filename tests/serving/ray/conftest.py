"""Two replicas under Ray Serve, started as users start them, on a network of their own that reaches nobody."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving.auth.keys import Key, KeyRing, new_secret
from serving.catalog import CatalogEntry, CatalogTarget, change_catalog, changes, open_catalog
from sparsehub.files import canonical_json, sha256_bytes

ROOT = Path(__file__).parents[3]
NETWORK_NAMESPACE = ROOT / "tests" / "support" / "network_namespace.py"
START_SECONDS, STOP_SECONDS = 150, 40
REPLICAS, TASKS = 2, ("three", "seven", "pair", "rating", "east", "west", "north", "south", "middle")


def until(condition: Callable[[], object], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.1)


@dataclass
class Endpoint:
    """What listens inside, seen from outside."""

    path: str
    process: subprocess.Popen[bytes]
    keys: Mapping[str, str]
    catalog: str

    def client(self, key: str = "team", **options: Any) -> httpx.Client:
        headers = {"Authorization": f"Bearer {self.keys[key]}"} if key else {}
        transport = httpx.HTTPTransport(uds=self.path)
        return httpx.Client(base_url="http://inside", transport=transport, timeout=60, headers=headers, **options)

    def connected(self, sent: bytes) -> socket.socket:
        """A connection on which so much was sent."""
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(self.path)
        connection.sendall(sent)
        return connection

    def replicas(self) -> list[int]:
        """The processes of the replicas."""
        return [pid for pid, title in self.processes().items() if title.startswith("ray::ServeReplica:default:Replica")]

    def process_of(self, replica: str) -> int:
        """The one that writes the log of a replica."""
        for pid in self.replicas():
            opened = [str(place.readlink()) for place in Path(f"/proc/{pid}/fd").iterdir() if place.is_symlink()]
            if any(path.endswith(f"_{replica}.log") for path in opened):
                return pid
        raise AssertionError(f"no process of {replica}")

    def processes(self) -> dict[int, str]:
        """All that live in this endpoint's network, by number."""
        found = {}
        for place in Path("/proc").glob("[0-9]*"):
            try:
                if (place / "ns/net").readlink() == self.network:
                    found[int(place.name)] = (place / "cmdline").read_text()
            except OSError:  # it has ended meanwhile
                continue
        return found

    until = staticmethod(until)

    def add(self, task: str) -> None:
        """Put a task of the hub into the catalogue."""
        change_catalog(open_catalog(self.catalog), adding(Path(self.catalog.rpartition("#")[0]), task))

    def stop(self) -> None:
        """As Ctrl-C does."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(STOP_SECONDS)

    def __post_init__(self) -> None:
        self.network = Path("/proc/self/ns/net").readlink()
        until(lambda: self._network() != self.network, 20)
        self.network = self._network()

    def _network(self) -> Path:
        return Path(f"/proc/{self.process.pid}/ns/net").readlink()


@pytest.fixture(scope="module")
def endpoint(
    suite: Mapping[str, Path], tiny_tasks: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Endpoint]:
    why_not()
    folder = tmp_path_factory.mktemp("ray")
    keys = write_keys(folder / "keys.json")
    fresh = {name: tiny_tasks.write(name, seed=seed) for seed, name in enumerate(TASKS[4:], start=11)}
    catalog = write_catalog(folder / "hub", {**suite, **fresh})
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("SPARSEHUB_", "RAY_"))},
        "HOME": str(folder),  # Ray writes there
        "SPARSEHUB_CACHE": str(folder / "cache"),
        "SPARSEHUB_BACKBONE": str(tiny_tasks.folder),
        "SPARSEHUB_CATALOG": "hub#it",
        "SPARSEHUB_KEYS": "keys.json",
        "SPARSEHUB_BODY_KIB": "64",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(ROOT),
    }
    with tempfile.TemporaryDirectory(prefix="ray") as short:  # the paths of local sockets must be
        log, path = folder / "log", f"{short}/http"
        serve = str(Path(sys.executable).with_name("serve"))
        command = [serve, "run", "serving.ray.app:app", f"replicas={REPLICAS}", "cpus=0"]
        with log.open("wb") as out:
            process = subprocess.Popen(
                ["unshare", "-n", sys.executable, str(NETWORK_NAMESPACE), path, "8000", *command],
                env={**environment, "RAY_TMPDIR": short},
                cwd=folder,
                stdout=out,
                stderr=out,
            )
        found = Endpoint(path, process, keys, catalog)
        try:
            wait_until_ready(found, log)
            yield found
        finally:
            stop(found)


def why_not() -> None:
    """Skip where it cannot run."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray Serve needs ray (pip install 'sparsehub[ray]')")
    if subprocess.run(["unshare", "-n", "true"], capture_output=True, check=False).returncode:
        pytest.skip("Ray listens on every interface, and no network of its own is permitted here")


def write_keys(path: Path) -> dict[str, str]:
    secrets = {name: new_secret() for name in ("team", "platform", "prometheus")}
    roles = {"team": "predict", "platform": "admin", "prometheus": "watch"}
    ring = KeyRing(tuple(Key(name, sha256_bytes(secret.encode()), roles[name]) for name, secret in secrets.items()))
    path.write_bytes(canonical_json(ring.to_json()))
    return secrets


def write_catalog(hub: Path, suite: Mapping[str, Path]) -> str:
    from sparsehub.hub import open_hub

    for name in (*TASKS, "words"):
        open_hub(hub).publish(suite[name])
    catalog = f"{hub}#it"
    for name in TASKS:
        change_catalog(open_catalog(catalog), adding(hub, name))
    return catalog


def adding(hub: Path, name: str) -> Callable[[Any], Any]:
    from sparsehub.hub import open_hub

    resolved = open_hub(hub).resolve(name)
    return lambda catalog: changes.add(catalog, name, CatalogEntry(CatalogTarget(resolved.version, resolved.digest)))


def wait_until_ready(endpoint: Endpoint, log: Path) -> None:
    with endpoint.client() as client:

        def ready() -> bool:
            assert endpoint.process.poll() is None, log.read_text()
            try:
                return client.get("/readyz").status_code == 200 and len(endpoint.replicas()) == REPLICAS
            except httpx.TransportError:
                return False

        until(ready, START_SECONDS)


def stop(endpoint: Endpoint) -> None:
    """Whatever is left in its network ends too."""
    try:
        endpoint.stop()
    finally:
        for process in endpoint.processes():
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        endpoint.process.wait(10)
