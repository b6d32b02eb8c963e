"""The endpoint under load: what HTTP, the gate and BentoML cost on top of the engine, and whether tasks cost anything.

python -m benchmarks.serving.serve
"""

from __future__ import annotations

import dataclasses
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import torch

from benchmarks.harness import Report, Row, in_turn, verdict, write_report
from benchmarks.packages import BACKBONE, example_texts, random_package, write_bare
from serving.request.metrics import percentile
from sparsehub.backbone import Backbone, load_backbone, open_checkpoint
from sparsehub.engine import Engine
from sparsehub.hub import open_hub
from sparsehub.package import read_package

TASKS = (1, 16, 64, 256)
CLIENTS, ITEMS, REQUESTS, ROUNDS = 4, 32, 24, 3
LONE, BURST = 60, 32  # requests of a lone client; clients of a burst
DELTAS = 8  # different ones; the other tasks repeat their values under digests of their own
PEFT_TASKS = 64  # more were not tried: 64 adapters take minutes to add
ENDPOINT, ENGINE, BARE, PEFT = (
    "endpoint",
    "engine, called directly",
    "bare FastAPI, one plain model",
    "bare FastAPI, PEFT LoRA r=8, adapter_names",
)
MOST_TASKS = {BARE: 1, PEFT: PEFT_TASKS}  # of those that cannot have as many as there are
Ask = Callable[[str, Sequence[str]], None]


def main() -> None:
    warnings.filterwarnings("ignore")
    torch.set_grad_enabled(False)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        backbone = load_backbone(BACKBONE)
        engine = Engine(backbone)
        fill(backbone, engine, Path(folder))
        engine.start()
        endpoint = stack.enter_context(
            server(["-m", "sparsehub", "serve", "--backbone", BACKBONE, "--hub", f"{folder}/hub", "--port"])
        )
        checkpoint = str(open_checkpoint(BACKBONE).folder)
        bare = stack.enter_context(server(["-m", "benchmarks.serving.bare_server", checkpoint, "0"]))
        peft = stack.enter_context(server(["-m", "benchmarks.serving.bare_server", checkpoint, str(PEFT_TASKS)]))
        asks = {ENDPOINT: over_http(endpoint), ENGINE: directly(engine), BARE: over_http(bare), PEFT: over_http(peft)}
        warm(asks)
        rows = throughput(asks)
        lone, line = lone_client(asks[ENDPOINT])
        engine.stop()
    report = Report("serve", f"The endpoint under load, {BACKBONE}", [*rows, *lone], NOTES, [*checks_of(rows), line])
    print(write_report(report, "1"))


NOTES = (
    f"{CLIENTS} clients, each of which sends its next request of {ITEMS} tickets when the last one is answered; "
    "the task of each request is drawn uniformly. Every server is a process of its own with one torch thread, on the "
    "same two cores as the clients. Cases run in turn, every other round backwards; items a second: the median of the "
    "rounds, p50 and p99: of all requests.",
    "The endpoint is `sparsehub serve`: BentoML, the gate, the routes, the engine. Bare FastAPI has one materialised "
    "model, no queue, no batches across requests, and answers with label and probabilities; with "
    f"PEFT it is one model with {PEFT_TASKS} adapters on all linear layers and as many heads, and `adapter_names` says "
    "each request's task. PEFT runs up to as many tasks.",
    f"The lone client sends one ticket at a time, {LONE} requests before and after {BURST} clients at once; medians of "
    f"{ROUNDS}.",
)


# what is served


def fill(backbone: Backbone, engine: Engine, folder: Path) -> None:
    """The same tasks in the engine here and in a hub for the endpoint."""
    made = [random_package(backbone, seed) for seed in range(DELTAS)]
    hub = open_hub(folder / "hub")
    for number in range(max(TASKS)):
        package, path = made[number % DELTAS], folder / f"task{number}"
        manifest = dataclasses.replace(package.manifest, name=f"task{number}")
        write_bare(path, manifest, package)
        hub.publish(path)
        engine.add(read_package(path))
    print(f"{max(TASKS)} tasks, {engine.usage.device_bytes / 2**20:.0f} MiB", file=sys.stderr, flush=True)


@contextmanager
def server(arguments: Sequence[str]) -> Iterator[str]:
    """A server in a process of its own; its address, once it is ready."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "BENTOML_DO_NOT_TRACK": "True", "PYTHONPATH": str(Path.cwd())}
    command = [sys.executable, *arguments, str(port)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        wait_until_ready(process, address)
        yield address
    finally:
        process.terminate()
        process.wait(60)


def wait_until_ready(process: subprocess.Popen[bytes], address: str) -> None:
    while process.poll() is None:
        try:
            if httpx.get(f"{address}/readyz", trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise SystemExit(f"{process.args!r} ended with {process.returncode}")


def over_http(address: str) -> Ask:
    client = httpx.Client(base_url=address, timeout=600, trust_env=False, limits=httpx.Limits(max_connections=BURST))

    def ask(task: str, texts: Sequence[str]) -> None:
        answer = client.post("/v1/classify", json={"model": task, "input": texts})
        assert answer.status_code == 200 and len(answer.json()["data"]) == len(texts), answer.text

    return ask


def directly(engine: Engine) -> Ask:
    def ask(task: str, texts: Sequence[str]) -> None:
        for future in engine.classify(task, texts).futures:
            future.result(600)

    return ask


def warm(asks: dict[str, Ask]) -> None:
    """Have every task in memory everywhere, and BentoML's and torch's first times behind us."""
    for name, ask in asks.items():
        for number in range(MOST_TASKS.get(name, max(TASKS))):
            ask(f"task{number}", ["a first request"])


# how much, how fast


def throughput(asks: dict[str, Ask]) -> list[Row]:
    texts = example_texts()
    cases = [(name, tasks) for tasks in TASKS for name in asks if tasks <= MOST_TASKS.get(name, max(TASKS))]
    rates: dict[Any, list[float]] = {case: [] for case in cases}
    waits: dict[Any, list[float]] = {case: [] for case in cases}
    for step, case in enumerate(in_turn(cases, ROUNDS + 1)):
        rate, seconds = load(asks[case[0]], case[1], texts, step)
        if step >= len(cases):  # the first round warms up
            rates[case].append(rate)
            waits[case] += seconds
        print(case, f"{rate:.0f} items a second", file=sys.stderr, flush=True)
    return [
        Row(
            name,
            {"tasks": tasks, "clients": CLIENTS, "items a request": ITEMS, "key": tasks},
            {"items a second": statistics.median(rates[name, tasks]), **percentiles(waits[name, tasks])},
        )
        for name, tasks in cases
    ]


def load(ask: Ask, tasks: int, texts: Sequence[str], seed: int) -> tuple[float, list[float]]:
    """Items a second over all clients, and the seconds of every request."""
    choices = random.Random(seed)
    requests = [(f"task{choices.randrange(tasks)}", choices.choices(texts, k=ITEMS)) for _ in range(REQUESTS)]
    start = time.perf_counter()
    with ThreadPoolExecutor(CLIENTS) as clients:
        seconds = list(clients.map(lambda request: timed(ask, *request), requests))
    return REQUESTS * ITEMS / (time.perf_counter() - start), seconds


def timed(ask: Ask, task: str, texts: Sequence[str]) -> float:
    start = time.perf_counter()
    ask(task, texts)
    return time.perf_counter() - start


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    return {f"p{percent} ms": percentile(ordered, percent) or 0.0 for percent in (50, 99)}


def lone_client(ask: Ask) -> tuple[list[Row], str]:
    """One client before and after a burst of many."""
    texts, found = example_texts(), {"before": [], "after": []}  # type: dict[str, list[dict[str, float]]]
    for _ in range(ROUNDS):
        for when in found:
            if when == "after":
                with ThreadPoolExecutor(BURST) as clients:
                    list(clients.map(lambda n: ask(f"task{n}", texts[:ITEMS]), range(BURST)))
            found[when].append(percentiles([timed(ask, "task0", texts[n : n + 1]) for n in range(LONE)]))
    medians = {
        when: {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}
        for when, rounds in found.items()
    }
    setup = {"what": f"a lone client, {BURST} clients before or after it"}
    rows = [Row(f"{when} the burst", setup, measured) for when, measured in medians.items()]
    ratio = medians["after"]["p99 ms"] / medians["before"]["p99 ms"]
    return rows, verdict("p99 of a lone client after a burst, of that before", ratio, 1.2)


def checks_of(rows: Sequence[Row]) -> list[str]:
    """The figures that the endpoint is held to, and whether they held in this run."""
    rate = {(row.case, row.setup["tasks"]): row.measured["items a second"] for row in rows}
    lines = [
        verdict(
            f"endpoint of the engine called directly, {tasks} tasks",
            rate[ENDPOINT, tasks] / rate[ENGINE, tasks],
            0.8,
            least=True,
        )
        for tasks in TASKS
    ]
    share = rate[ENDPOINT, 64] / rate[ENDPOINT, 1]
    lines.append(verdict("endpoint at 64 tasks of itself at one task", share, 0.85, least=True))
    beside_peft = rate[ENDPOINT, PEFT_TASKS] / rate[PEFT, PEFT_TASKS]
    lines.append(f"endpoint at {PEFT_TASKS} tasks of PEFT's server with as many: {beside_peft:.3f}")
    lines.append(f"endpoint at one task of bare FastAPI with one plain model: {rate[ENDPOINT, 1] / rate[BARE, 1]:.3f}")
    return lines


if __name__ == "__main__":
    main()
