"""Fifty keys on one endpoint, one of them greedy: what the light ones wait, and what sharing costs in throughput.

python -m benchmarks.serving.crowd
"""

from __future__ import annotations

import dataclasses
import itertools
import random
import re
import tempfile
import time
import warnings
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import torch

from benchmarks.harness import Report, Row, verdict, write_report
from benchmarks.packages import BACKBONE, example_texts, random_package, write_bare
from benchmarks.serving.serve import server
from serving.auth.keys import WATCH, Key, KeyRing
from serving.request.metrics import percentile
from sparsehub.backbone import load_backbone
from sparsehub.files import sha256_bytes
from sparsehub.hub import open_hub

KEYS, TASKS, SECONDS = 50, 8, 20.0
ROWS, GREEDY, FLOOD = 32, 4, 16  # of a greedy request; its clients that measure what fits, and those of an overload
LIGHT_RATE = 6.0  # single rows a second, of all light keys together
ALONE, BUSY, OVERLOAD, ONE_KEY = "light keys alone", "80% load", "overload", "overload, all on one key"
RATIOS = (BUSY, OVERLOAD)
WATCHER, GREEDY_KEY, LIGHT_KEYS = "watcher", "key0", [f"key{number}" for number in range(1, KEYS)]


@dataclass
class Asked:
    """What the clients of one case found. rows: run in its time, of all keys; refused: requests, with 429."""

    rows: int
    seconds: list[float]  # of the light keys' requests
    refused: int = 0

    @property
    def measured(self) -> dict[str, float]:
        ordered = sorted(self.seconds)
        waits = {f"p{p} ms of a light row": percentile(ordered, p) or 0.0 for p in (50, 99)}
        return {"rows a second": self.rows / SECONDS, **waits, "light rows": len(ordered), "refused": self.refused}


def main() -> None:
    warnings.filterwarnings("ignore")
    torch.set_grad_enabled(False)
    with tempfile.TemporaryDirectory() as folder:
        fill(Path(folder))
        command = ["-m", "sparsehub", "serve", "--backbone", BACKBONE, "--hub", f"{folder}/hub"]
        with server([*command, "--keys", f"{folder}/keys.json", "--port"]) as address:
            rows, checks = cases(Clients(address))
    print(write_report(Report("crowd", f"{KEYS} keys on one endpoint, {BACKBONE}", rows, NOTES, checks), "1"))


NOTES = (
    f"{KEYS} keys of equal weight and {TASKS} tasks. The light keys together send {LIGHT_RATE:g} single rows a second, "
    f"at random moments, each for a random task. The greedy key sends requests of {ROWS} rows: as many as make 80% of "
    f"what {GREEDY} clients alone get through, or, in the overload, {FLOOD} at once, always; {SECONDS:g} s a case.",
    "All on one key: the same requests, of which the endpoint cannot tell whose they are: a queue in the order of "
    "arrival.",
)


def fill(where: Path) -> None:
    """A hub with the tasks, and a key file."""
    backbone, hub = load_backbone(BACKBONE), open_hub(where / "hub")
    for number in range(TASKS):
        package, path = random_package(backbone, number), where / f"task{number}"
        write_bare(path, dataclasses.replace(package.manifest, name=path.name), package)
        hub.publish(path)
    keys = [Key(name, sha256_bytes(name.encode())) for name in (GREEDY_KEY, *LIGHT_KEYS)]
    ring = KeyRing((*keys, Key(WATCHER, sha256_bytes(WATCHER.encode()), WATCH)))
    (where / "keys.json").write_bytes(ring.to_bytes())


class Clients:
    """What asks the endpoint, by the names of keys, which are the keys too."""

    def __init__(self, address: str):
        limits = httpx.Limits(max_connections=FLOOD + KEYS)
        self._http = httpx.Client(base_url=address, timeout=120, trust_env=False, limits=limits)
        self._texts = example_texts()

    def ask(self, key: str, task: int, count: int, seed: int) -> tuple[bool, float]:
        """Whether the endpoint answered, and did not refuse (429); and after how many seconds."""
        texts = random.Random(seed).choices(self._texts, k=count)
        body, headers = {"model": f"task{task}", "input": texts}, {"Authorization": f"Bearer {key}"}
        start = time.perf_counter()
        answer = self._http.post("/v1/classify", json=body, headers=headers)
        assert answer.status_code in (200, 429), answer.text
        return answer.status_code == 200, time.perf_counter() - start

    def load(self, clients: int, pause: float, light_rate: float, one_key: bool = False) -> Asked:
        """`clients` of the greedy key, each of which sends a request when its last one was answered and `pause` seconds
        have passed since that was sent, beside light keys that do not wait for each other."""
        before, over = self._rows_run(), time.perf_counter() + SECONDS
        asked = Asked(0, [])
        with ThreadPoolExecutor(FLOOD + KEYS) as pool:
            running = [pool.submit(self._greedy, number, pause, over) for number in range(clients)]
            lone = self._lone_rows(pool, light_rate, over, one_key)
            time.sleep(max(0.0, over - time.perf_counter()))
            asked.rows = self._rows_run() - before
            asked.refused = sum(future.result() for future in running)
            for answered, seconds in (future.result() for future in lone):
                asked.refused += not answered
                asked.seconds.append(seconds)
        return asked

    def _rows_run(self) -> int:
        """Rows that the endpoint has run since it started."""
        text = self._http.get("/metrics", headers={"Authorization": f"Bearer {WATCHER}"}).text
        return int(sum(map(float, re.findall(r"^sparsehub_key_rows_total\{.*\} (\S+)$", text, re.MULTILINE))))

    def _greedy(self, number: int, pause: float, over: float) -> int:
        """How many of its requests were refused."""
        refused, turns = 0, itertools.count()
        while (began := time.perf_counter()) < over:
            turn = next(turns)
            answered, _ = self.ask(GREEDY_KEY, (number + turn) % TASKS, ROWS, turn)
            refused += not answered
            time.sleep(max(0.0, min(began + pause, over) - time.perf_counter()))
        return refused

    def _lone_rows(
        self, pool: ThreadPoolExecutor, rate: float, over: float, one_key: bool
    ) -> list[Future[tuple[bool, float]]]:
        choices, sent = random.Random(1), list[Future[tuple[bool, float]]]()
        while rate and (wait := choices.expovariate(rate)) < over - time.perf_counter():
            time.sleep(wait)
            key = GREEDY_KEY if one_key else choices.choice(LIGHT_KEYS)
            sent.append(pool.submit(self.ask, key, choices.randrange(TASKS), 1, len(sent)))
        return sent


def cases(clients: Clients) -> tuple[list[Row], list[str]]:
    """Every case, and what is held to a limit."""
    for task in range(TASKS):
        clients.ask(GREEDY_KEY, task, ROWS, task)  # the first times of everything
    fits = clients.load(GREEDY, 0.0, 0.0).rows / SECONDS
    pause = GREEDY * ROWS / (0.8 * fits - LIGHT_RATE)
    found = {
        ALONE: clients.load(0, 0.0, LIGHT_RATE),
        BUSY: clients.load(GREEDY, pause, LIGHT_RATE),
        OVERLOAD: clients.load(FLOOD, 0.0, LIGHT_RATE),
        ONE_KEY: clients.load(FLOOD, 0.0, LIGHT_RATE, one_key=True),
    }
    rows = [Row(case, {"keys": KEYS, "tasks": TASKS}, asked.measured) for case, asked in found.items()]
    p99 = {case: percentile(sorted(asked.seconds), 99) or 0.0 for case, asked in found.items()}
    checks = [verdict(f"p99 of light keys at {case}, of that alone", p99[case] / p99[ALONE], 3) for case in RATIOS]
    share = found[OVERLOAD].rows / max(1, found[ONE_KEY].rows)
    checks.append(verdict("throughput in the overload, of that of one queue", share, 0.95, least=True))
    checks.append(f"the greedy key's {GREEDY} clients alone: {fits:.0f} rows a second")
    return rows, checks


if __name__ == "__main__":
    main()
