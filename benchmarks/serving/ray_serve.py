"""Ray Serve: how many requests meet a replica that has their task ready, what replicas bring, what a lost one costs.

python -m benchmarks.serving.ray_serve
"""

from __future__ import annotations

import itertools
import math
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import patch

import httpx
import torch

from benchmarks.harness import Report, Row, verdict, write_report
from benchmarks.models import save_encoder
from benchmarks.packages import example_texts, save_tokenizer, write_random
from benchmarks.serving.ray_device import ROW_SECONDS, BlindFront, SlowReplica
from serving.catalog import CatalogEntry, CatalogTarget, change_catalog, changes, open_catalog
from serving.ray import app as ray_app
from serving.ray.ingress import Ingress
from serving.request.metrics import percentile
from sparsehub.backbone import load_backbone
from sparsehub.engine import Engine
from sparsehub.hub import open_hub
from sparsehub.package import read_package

SIZE = "2 x 64"
TASKS, FIT, ITEMS, CLIENTS = 64, 32, 4, 12
LIMIT = 8  # requests of a replica at once
COLD_SECONDS, SECONDS, KILL_AFTER, AFTER_KILL = 8.0, 26.0, 4.0, 14.0
APART = "SPARSEHUB_BENCHMARK_APART"
ADDRESS = "http://127.0.0.1:8000"
COLD, WARM = "ready, from the first %", "ready, after each once %"
Expected = dict[str, dict[str, list[float]]]


def main() -> None:
    warnings.filterwarnings("ignore")
    torch.set_grad_enabled(False)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, cluster(folder):
        expected, mib = fill(Path(folder))
        os.environ |= {"SPARSEHUB_BACKBONE": f"{folder}/backbone", "SPARSEHUB_CATALOG": f"{folder}/hub#it"}
        os.environ |= {"SPARSEHUB_DEVICE_MIB": str(mib)}
        rows = [measured(replicas, expected) for replicas in (1, 2)]
        rows.append(measured(3, expected, blind=True))
        rows.append(measured(3, expected, keep=True))
        lost = killed(expected)
    report = Report(
        "ray_serve",
        f"Replicas on Ray Serve, a random BERT of {SIZE}, {TASKS} tasks",
        [*rows, lost],
        NOTES,
        checks_of(rows, lost),
    )
    print(write_report(report, "1 a replica"))


NOTES = (
    "The cores of this machine are too few for three replicas, so a device is simulated, in this benchmark only: "
    f"before each forward pass the model thread sleeps {ROW_SECONDS * 1e3:g} ms a row, and then the pass runs, so "
    "that answers can be checked. Requests a second thus say how replicas share work, not how fast a machine is; the "
    "rest (HTTP, Ray's proxy, the front, the clients) runs for real, on the same cores.",
    f"{CLIENTS} clients, each of which sends its next request of {ITEMS} texts when the last one is answered; the task "
    f"of each is drawn from {TASKS} by Zipf's law (1 / rank). A replica's memory takes about {FIT} of the {TASKS} "
    f"tasks, and {LIMIT} requests at once.",
    "One replica alone has room for half of the tasks and loads the others again and again, which the second one "
    "spares: so two bring more than twice as much.",
    "Ready: requests whose task was in the memory of the replica that they came to, counted by the engines; first from "
    "the first request on, then after each task was asked once. Blind: the same endpoint, with requests placed by load "
    "alone.",
    "Lost: requests without an answer of 200 after the client's two tries more, as OpenAI's clients make them; wrong: "
    "answers that differ by more than 1e-3 from those of one engine that is called directly.",
)


# the endpoint


def fill(folder: Path) -> tuple[Expected, int]:
    """A hub with a catalogue of all tasks, what each of them answers, and the MiB that `FIT` of them take."""
    save_encoder(SIZE, folder / "backbone")
    save_tokenizer(folder / "backbone")
    backbone = load_backbone(str(folder / "backbone"))
    engine, hub = Engine(backbone), open_hub(folder / "hub")
    entries = {}
    for number in range(TASKS):
        path = write_random(backbone, number, folder / f"task{number}")
        hub.publish(path)
        package = read_package(path)
        engine.add(package)
        entries[f"task{number}"] = CatalogEntry(CatalogTarget("1.0.0", package.digest))
    change_catalog(open_catalog(f"{folder}/hub#it"), lambda catalog: added(catalog, entries))
    engine.start()
    expected, nbytes = {task: directly(engine, task) for task in entries}, engine.usage.device_bytes
    engine.stop()
    return expected, math.ceil(nbytes / TASKS * FIT / 2**20)


def added(catalog: Any, entries: dict[str, CatalogEntry]) -> Any:
    for name, entry in entries.items():
        catalog = changes.add(catalog, name, entry)
    return catalog


def directly(engine: Engine, task: str) -> dict[str, list[float]]:
    texts = example_texts()[: 2 * ITEMS]
    return dict(zip(texts, [list(f.result(60).scores) for f in engine.classify(task, texts).futures], strict=True))


@contextmanager
def cluster(folder: str) -> Iterator[None]:
    """Ray on this machine alone."""
    import ray
    from ray import serve

    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1"}
    os.environ |= {"SPARSEHUB_CACHE": f"{folder}/cache", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(Path.cwd())}
    with tempfile.TemporaryDirectory(prefix="ray") as short:  # the paths of its sockets must be
        ray.init(log_to_driver=False, _temp_dir=short)
        try:
            yield
        finally:
            serve.shutdown()
            ray.shutdown()


@contextmanager
def endpoint(replicas: int, blind: bool, keep: bool) -> Iterator[None]:
    from ray import serve

    args = {"replicas": replicas, "cpus": 0, "requests": LIMIT, "tasks": FIT - 2}
    with patch.multiple(ray_app, Replica=SlowReplica, Ingress=BlindFront if blind else Ingress):
        serve.run(ray_app.app(args))
    try:
        yield
    finally:
        if not keep:
            serve.delete("default")


# load


def measured(replicas: int, expected: Expected, *, blind: bool = False, keep: bool = False) -> Row:
    with endpoint(replicas, blind, keep):
        cold = load(expected, COLD_SECONDS, seed=0, first=list(expected))
        warm = load(expected, SECONDS, seed=1)
    name = f"{replicas} replica{'s' * (replicas > 1)}{', blind' * blind}"
    total = {key: cold[key] + warm[key] for key in ("asked", "loaded")}
    figures = {
        "requests a second": warm["answered"] / warm["seconds"],
        "p50 ms": percentile(warm["waits"], 50),
        "p99 ms": percentile(warm["waits"], 99),
        COLD: 100 * (1 - total["loaded"] / total["asked"]),
        WARM: 100 * (1 - warm["loaded"] / warm["asked"]),
        "lost": cold["lost"] + warm["lost"],
        "wrong": cold["wrong"] + warm["wrong"],
    }
    print(name, figures, file=sys.stderr, flush=True)
    return Row(name, {"tasks": TASKS, "clients": CLIENTS, "texts a request": ITEMS, "ray": version("ray")}, figures)


def killed(expected: Expected) -> Row:
    """One of the three replicas is killed while the clients ask."""
    killer = threading.Timer(KILL_AFTER, kill_one)
    killer.start()
    found = load(expected, KILL_AFTER + AFTER_KILL, seed=2)
    killer.join()
    figures = {key: found[key] for key in ("asked", "answered", "lost", "wrong", "retried")}
    figures |= {"slowest ms": found["waits"][-1] * 1e3, "replicas at the end": float(len(replica_processes()))}
    return Row("3 replicas, one killed", {"what": "a replica killed under load (SIGKILL)"}, figures)


def replica_processes() -> list[int]:
    """Of this namespace's Ray."""
    mine, found = Path("/proc/self/ns/net").readlink(), []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if (place / "cmdline").read_bytes().startswith(b"ray::ServeReplica:default:SlowReplica"):
                found += [int(place.name)] if (place / "ns/net").readlink() == mine else []
        except OSError:  # it has ended
            continue
    return found


def kill_one() -> None:
    os.kill(replica_processes()[0], signal.SIGKILL)


def load(expected: Expected, seconds: float, seed: int, first: Sequence[str] = ()) -> dict[str, Any]:
    """Ask for so long; `first`: tasks that are asked before any other."""
    end, before = time.perf_counter() + seconds, loads()
    order = iter(first)
    lock, found, waits = threading.Lock(), Counter[str](), list[float]()

    def client(number: int) -> None:
        choices = random.Random(1000 * seed + number)
        with httpx.Client(base_url=ADDRESS, timeout=60, trust_env=False) as http:
            while time.perf_counter() < end:
                with lock:
                    task = next(order, None) or zipf(choices, list(expected))
                start = time.perf_counter()
                outcome = ask(http, task, expected[task], choices)
                with lock:
                    found.update(outcome)
                    waits.append(time.perf_counter() - start)

    start = time.perf_counter()
    with ThreadPoolExecutor(CLIENTS) as clients:
        list(clients.map(client, range(CLIENTS)))
    took = time.perf_counter() - start
    counts = {key: found[key] for key in ("asked", "answered", "lost", "wrong", "retried")}
    return {**counts, "loaded": loads() - before, "seconds": took, "waits": sorted(waits)}


def zipf(choices: random.Random, tasks: Sequence[str]) -> str:
    return choices.choices(tasks, [1 / rank for rank in range(1, len(tasks) + 1)])[0]


def ask(http: httpx.Client, task: str, expected: dict[str, list[float]], choices: random.Random) -> Counter[str]:
    texts, found = choices.sample(list(expected), ITEMS), Counter(asked=1)
    for attempt in itertools.count():
        try:
            answer = http.post("/v1/classify", json={"model": task, "input": texts})
            failed = answer.status_code >= 500
        except httpx.TransportError:
            failed = True
        if not failed:
            break
        if attempt == 2:
            return found + Counter(lost=1)
        found["retried"] += 1
        time.sleep(0.5 * 2**attempt)
    if answer.status_code != 200:
        return found + Counter(lost=1)
    given = [entry["probs"] for entry in answer.json()["data"]]
    right = all(
        math.isclose(a, b, abs_tol=1e-3)
        for text, probs in zip(texts, given, strict=True)
        for a, b in zip(probs, expected[text], strict=True)
    )
    return found + Counter(answered=1, wrong=int(not right))


def loads() -> int:
    """Requests that found their task not in memory, over all replicas."""
    text = httpx.get(f"{ADDRESS}/metrics", timeout=60, trust_env=False).text
    return sum(
        int(float(value)) for value in re.findall(r'^sparsehub_lookups\{[^}]*was="loaded"[^}]*\} (\S+)', text, re.M)
    )


def checks_of(rows: Sequence[Row], lost: Row) -> list[str]:
    """The figures that the endpoint is held to."""
    rate = {row.case: row.measured["requests a second"] for row in rows}
    three = rows[-1].measured
    one = rate["1 replica"]
    return [
        verdict(
            "% of requests whose task was ready, 3 replicas, after each was asked once", three[WARM], 95, least=True
        ),
        f"% of them from the first request on, each task's first one with them: {three[COLD]:.1f}",
        f"throughput of one replica: at 2 replicas {rate['2 replicas'] / one:.2f}, at 3 {rate['3 replicas'] / one:.2f}",
        verdict("lost answers, one replica killed", lost.measured["lost"], 0),
        verdict("wrong answers, one replica killed", lost.measured["wrong"], 0),
    ]


if __name__ == "__main__":
    if APART not in os.environ:  # Ray listens on every interface: it gets a network of its own
        arguments = ["-c", 'ip link set lo up && exec "$@"', "sh", sys.executable, "-m", "benchmarks.serving.ray_serve"]
        raise SystemExit(subprocess.call(["unshare", "-n", "sh", *arguments], env={**os.environ, APART: "1"}))
    del os.environ[APART]  # no setting of an endpoint
    main()
