"""Two replicas under Ray Serve, started as users start them, on a network of their own that reaches nobody."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI
from prometheus_client.parser import text_string_to_metric_families

from serving.access.keys import Key, KeyRing, new_secret
from serving.catalog import Entry, Target, change_catalog, changes, open_catalog
from sparsehub.files import canonical_json, sha256_bytes

ROOT = Path(__file__).parents[2]
APART = Path(__file__).parent / "apart.py"
START_SECONDS, STOP_SECONDS = 150, 40
REPLICAS, TASKS = 2, ("three", "seven", "pair", "rating")
FRESH = ("east", "west")  # of the catalogue too, asked by one test only
TEXTS = ("the fox", "a dog", "who wrote the book")

if importlib.util.find_spec("ray") is None:
    pytest.skip("Ray Serve needs ray (pip install 'sparsehub[ray]')", allow_module_level=True)
if subprocess.run(["unshare", "-n", "true"], capture_output=True, check=False).returncode:
    pytest.skip("Ray listens on every interface, and no network of its own is permitted here", allow_module_level=True)


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

    def __post_init__(self) -> None:
        self.network = Path("/proc/self/ns/net").readlink()
        until(lambda: self._network() != self.network, 20)
        self.network = self._network()

    def _network(self) -> Path:
        return Path(f"/proc/{self.process.pid}/ns/net").readlink()


def until(condition: Callable[[], object], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def endpoint(
    suite: Mapping[str, Path], tiny_tasks: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Endpoint]:
    folder = tmp_path_factory.mktemp("ray")
    keys = write_keys(folder / "keys.json")
    fresh = {name: tiny_tasks.write(name, seed=seed) for seed, name in enumerate(FRESH, start=11)}
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
        command = [serve, "run", "serving.ray_app:app", f"replicas={REPLICAS}", "cpus=0"]
        with log.open("wb") as out:
            process = subprocess.Popen(
                ["unshare", "-n", sys.executable, str(APART), path, "8000", *command],
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


def write_keys(path: Path) -> dict[str, str]:
    secrets = {name: new_secret() for name in ("team", "platform", "prometheus")}
    roles = {"team": "predict", "platform": "admin", "prometheus": "watch"}
    ring = KeyRing(tuple(Key(name, sha256_bytes(secret.encode()), roles[name]) for name, secret in secrets.items()))
    path.write_bytes(canonical_json(ring.to_json()))
    return secrets


def write_catalog(hub: Path, suite: Mapping[str, Path]) -> str:
    from sparsehub.hub import open_hub

    for name in (*TASKS, *FRESH, "words"):
        open_hub(hub).publish(suite[name])
    catalog = f"{hub}#it"
    for name in (*TASKS, *FRESH):
        change_catalog(open_catalog(catalog), adding(hub, name))
    return catalog


def adding(hub: Path, name: str) -> Callable[[Any], Any]:
    from sparsehub.hub import open_hub

    resolved = open_hub(hub).resolve(name)
    return lambda catalog: changes.add(catalog, name, Entry(Target(resolved.version, resolved.digest)))


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
    """As Ctrl-C does; whatever is left in its network ends too."""
    endpoint.process.send_signal(signal.SIGTERM)
    try:
        endpoint.process.wait(STOP_SECONDS)
    finally:
        for process in endpoint.processes():
            os.kill(process, signal.SIGKILL)
        endpoint.process.wait(10)


def classify(client: httpx.Client, task: str, text: Any) -> httpx.Response:
    path = "/v1/score" if task == "rating" else "/v1/classify"
    return client.post(path, json={"model": task, "input": [text]})


def numbers(response: httpx.Response) -> list[float]:
    entry = response.json()["data"][0]
    return entry["probs"] if "probs" in entry else [entry["score"]]


def test_every_replica_answers_what_one_process_answers(
    endpoint: Endpoint, reference_of: Callable[[str], Callable[[Any], list[float]]]
) -> None:
    with endpoint.client() as client:
        for task in TASKS:
            for text in TEXTS:
                item = [text, "a film"] if task == "pair" else text
                answer = classify(client, task, item)
                assert answer.status_code == 200, answer.text
                assert numbers(answer) == pytest.approx(reference_of(task)(item), abs=1e-4)
                assert answer.headers["x-sparsehub-digest"] == answer.json()["digest"]
        infer = {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a dog"]}]}
        tensors = client.post("/v2/models/three/infer", json=infer).json()["outputs"]
        assert tensors[1]["data"] == pytest.approx(reference_of("three")("a dog"), abs=1e-4)
        assert client.post("/v1/embeddings", json={"model": "backbone", "input": "a dog"}).status_code == 200


def test_a_task_is_asked_where_it_is_ready(endpoint: Endpoint) -> None:
    """Its name is in the body, in the path, at a version or the first of a composition: it is one place."""
    with endpoint.client() as client:
        places = {task: classify(client, task, TEXTS[0]).headers["x-sparsehub-replica"] for task in FRESH}
        time.sleep(0.5)  # until Ray has told the front
        for task, place in places.items():
            infer = {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a dog"]}]}
            answers = [
                *[
                    classify(client, named, "a dog")
                    for named in (task, f"{task}@1.0.0", f"{task}*0.5")
                    for _ in range(3)
                ],
                *[client.post(f"/v2/models/{task}/infer", json=infer) for _ in range(3)],
            ]
            assert [a.status_code for a in answers] == [200] * len(answers)
            assert {a.headers["x-sparsehub-replica"] for a in answers} == {place}


def test_the_gate_of_a_replica_guards_it_behind_the_front_too(endpoint: Endpoint) -> None:
    with endpoint.client(key="") as stranger:
        assert classify(stranger, "three", "a").status_code == 401
        assert stranger.get("/metrics").status_code == 401
    with endpoint.client() as client:
        acts = client.post("/v1/admin/catalog/remove", json={"task": "three"}), client.get("/metrics")
        assert [act.status_code for act in acts] == [403, 403]
        unknown = classify(client, "thre", "a")
        assert unknown.status_code == 404 and "did you mean 'three'" in unknown.json()["error"]["message"]
        large = classify(client, "three", "a" * 70_000)
        assert large.status_code == 413 and large.json()["error"]["code"] == "BodyTooLargeError"
        broken = client.post("/v1/classify", content=b"{" * 100)
        assert broken.status_code == 400 and broken.json()["error"]["code"] == "malformed_body"
        named = client.get("/v1/models", headers={"x-request-id": "mine"})
        assert named.headers.get_list("x-request-id") == ["mine"]


def test_metrics_and_the_state_of_tasks_are_of_all_replicas(endpoint: Endpoint) -> None:
    with endpoint.client("prometheus") as client:
        families = {f.name: f for f in text_string_to_metric_families(client.get("/metrics").text)}
        served = {sample.labels["replica"]: sample.value for sample in families["sparsehub_tasks"].samples}
        assert list(served.values()) == [float(len((*TASKS, *FRESH)))] * REPLICAS
        entries = client.get("/v1/tasks").json()["data"]
        assert Counter(entry["name"] for entry in entries) == dict.fromkeys((*TASKS, *FRESH), REPLICAS)
        assert {entry["replica"] for entry in entries} == set(served)


def test_a_change_of_the_catalogue_reaches_all_replicas(endpoint: Endpoint) -> None:
    """From outside, and by an admin's request, which one of them answers."""

    def holders(client: httpx.Client) -> int:
        return sum(entry["name"] == "words" for entry in client.get("/v1/tasks").json()["data"])

    hub = Path(endpoint.catalog.rpartition("#")[0])
    with endpoint.client("platform") as admin:
        change_catalog(open_catalog(endpoint.catalog), adding(hub, "words"))
        until(lambda: holders(admin) == REPLICAS, 15)
        assert classify(admin, "words", "a dog").status_code == 200
        assert admin.post("/v1/admin/catalog/remove", json={"task": "words"}).status_code == 200
        until(lambda: holders(admin) == 0, 15)
        assert classify(admin, "words", "a dog").status_code == 404


def test_a_replica_that_is_killed_under_load_loses_no_answer(
    endpoint: Endpoint, reference_of: Callable[[str], Callable[[Any], list[float]]]
) -> None:
    """The client is OpenAI's, with its two tries more."""
    asked = {(task, text): reference_of(task)(text) for task in ("three", "seven") for text in TEXTS}
    wrong: list[Any] = []
    answered, enough = Counter[str](), threading.Event()

    def load() -> None:
        with OpenAI(
            base_url="http://inside/v1", api_key=endpoint.keys["team"], http_client=endpoint.client()
        ) as client:
            while not enough.is_set():
                for (task, text), expected in asked.items():
                    answer = client.post("/classify", body={"model": task, "input": text}, cast_to=httpx.Response)
                    answered[answer.headers["x-sparsehub-replica"]] += 1
                    if numbers(answer) != pytest.approx(expected, abs=1e-4):
                        wrong.append((task, text, answer.text))

    threads = [Thread(load) for _ in range(4)]
    until(lambda: sum(answered.values()) > 40, 30)
    (busiest, _), *_ = answered.most_common()
    victim = endpoint.process_of(busiest)
    os.kill(victim, signal.SIGKILL)
    before = sum(answered.values())
    until(lambda: sum(answered.values()) > before + 60, 30)
    enough.set()
    for thread in threads:
        thread.finish()
    assert wrong == [] and len(answered) > 1
    until(lambda: len(endpoint.replicas()) == REPLICAS and victim not in endpoint.replicas(), 60)


class Thread(threading.Thread):
    """It starts at once, and what it fails with is raised by `finish`."""

    def __init__(self, work: Callable[[], None]):
        super().__init__(daemon=True)
        self._work, self._error = work, None  # type: Any, BaseException | None
        self.start()

    def run(self) -> None:
        try:
            self._work()
        except BaseException as error:
            self._error = error

    def finish(self) -> None:
        self.join(60)
        assert not self.is_alive()
        if self._error is not None:
            raise self._error


def test_it_ends_as_a_whole_and_called_nobody(endpoint: Endpoint) -> None:
    """The last one: it stops the endpoint."""
    endpoint.process.send_signal(signal.SIGTERM)
    endpoint.process.wait(STOP_SECONDS)
    until(lambda: not endpoint.processes(), 10)
    assert not list(Path(endpoint.path).parent.rglob("usage_stats.json"))
