"""Bodies that mean to hold up an endpoint: what each is answered, and how long others wait meanwhile.

python -m benchmarks.serving.hostile_bodies
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import torch

from benchmarks.harness import Report, Row, verdict, write_report
from benchmarks.packages import BACKBONE, random_package, write_bare
from benchmarks.serving.serve import server
from sparsehub.backbone import load_backbone

TASK, TIMES = "task0", 10
PAUSE = 0.004  # seconds between two looks of another client
MOST_HELD = 0.05  # seconds that the event loop may be held, whatever comes
MOST_MEMORY = 300  # MiB that may stay
MOST_HEALTH, MOST_ROW = 0.5, 2.0  # seconds that others may wait: for /healthz, for a single row
MEBI = 1 << 20


def _of(model: str = TASK, **fields: object) -> bytes:
    return json.dumps({"model": model, **fields}).encode()


def _long(start: bytes, part: bytes, end: bytes, size: int = 4 * MEBI - 200) -> bytes:
    return start + part * ((size - len(start) - len(end)) // len(part)) + end


BODIES: Mapping[str, tuple[str, Callable[[], bytes]]] = {
    "4 MB of integers": ("/v1/embeddings", lambda: _long(b'{"model":"task0","input":[', b"1,", b"1]}")),
    "4 MB of integers, as documents": (
        "/v1/rerank",
        lambda: _long(b'{"model":"backbone","query":"a","documents":[', b"1,", b"1]}"),
    ),
    "4 MB of one letter": ("/v1/classify", lambda: _long(b'{"model":"task0","input":"', b".", b'"}')),
    "4 MB of one letter, to be cut": (
        "/v1/classify",
        lambda: _long(b'{"model":"task0","truncate_prompt_tokens":-1,"input":"', b".", b'"}'),
    ),
    "4 MB of commas": ("/v1/classify", lambda: _long(b'{"model":"task0","input":"', b",", b'"}')),
    "4 MB of escapes": ("/v1/classify", lambda: _long(b'{"model":"task0","input":"', b"\\u00e9", b'"}')),
    "4 MB of brackets": ("/v1/classify", lambda: _long(b'{"model":"task0","input":', b"[", b"]")),
    "4 MB of brackets in a text": ("/v1/classify", lambda: _long(b'{"model":"task0","input":"', b"[{:", b'"}')),
    "4 MB of objects": ("/v1/classify", lambda: _long(b'{"model":"task0","input":[', b"{},", b"{}]}")),
    "4 MB of fields": ("/v1/classify", lambda: _long(b'{"model":"task0","input":{', b'"a":1,', b'"b":1}}')),
    "4 MB of texts that do not end": ("/v1/classify", lambda: _long(b'{"model":"task0","input":["', b'a","', b"b")),
    "1,024 texts of 4,000 letters": ("/v1/classify", lambda: _of(input=["ab cd" * 800] * 1024)),
    "1,024 texts of one word": ("/v1/classify", lambda: _of(input=["word"] * 1024)),
    "1,024 vectors": ("/v1/embeddings", lambda: _of("backbone", input=["word"] * 1024)),
    "1,024 vectors in base64": (
        "/v1/embeddings",
        lambda: _of("backbone", input=["word"] * 1024, encoding_format="base64"),
    ),
    "1,024 pairs": ("/v1/score", lambda: _of("backbone", text_1="a", text_2=["b c"] * 1024)),
    "60 kB of wrong types": ("/v1/classify", lambda: _long(b'{"model":"task0","input":[', b"1.5,", b"1]}", 60_000)),
    "wrong types beside right ones": ("/v1/classify", lambda: _of(input=[*["a"] * 1023, {"a": 1}])),
}


def main() -> None:
    warnings.filterwarnings("ignore")
    torch.set_grad_enabled(False)
    with tempfile.TemporaryDirectory() as folder:
        package, path = random_package(load_backbone(BACKBONE), 0), Path(folder) / TASK
        write_bare(path, dataclasses.replace(package.manifest, name=TASK), package)
        with server(
            ["-m", "sparsehub", "serve", "--backbone", BACKBONE, "--task", str(path), "--compile", "off", "--port"]
        ) as address:
            row_of(address, "", "/v1/classify", lambda: _of(input=["word"] * 1024))  # as it is when it has worked
            before, resident = looks_by_lag(address), resident_mebibytes()  # the start is no client's doing
            rows = [row_of(address, what, *body) for what, body in BODIES.items()]
            after, more = looks_by_lag(address), resident_mebibytes() - resident
    held = next(end for end, looks in after.items() if looks - before[end] == after[math.inf] - before[math.inf])
    worst = {name: max(float(str(row.measured[name])) for row in rows) for name in (HEALTH, ROW)}
    checks = [
        verdict("longest that the event loop was held, s (upper end of its bucket)", held, MOST_HELD),
        verdict("longest that /healthz took, ms", worst[HEALTH], MOST_HEALTH * 1e3),
        verdict("longest that another client's row took, ms", worst[ROW], MOST_ROW * 1e3),
        verdict("resident memory afterwards, MiB more than before", more, MOST_MEMORY),
    ]
    print(write_report(Report("hostile_bodies", f"Hostile bodies, {BACKBONE}", rows, NOTES, checks), "1"))


ANSWER, HEALTH, ROW = "ms until the answer", "longest /healthz, ms", "longest row of another client, ms"
NOTES = (
    f"Each body {TIMES} times, one after the other, while two other clients ask without a pause: one for /healthz, one "
    "for a single row.",
    "How long the event loop was held is what the endpoint's own clock says (`sparsehub_event_loop_lag_seconds`).",
)


def row_of(address: str, what: str, path: str, body: Callable[[], bytes]) -> Row:
    """One kind of body, sent again and again."""
    content = body()
    health, single = (lambda c: c.get("/healthz")), (lambda c: c.post("/v1/classify", content=_of(input="a dog")))
    with others(address, health) as healths, others(address, single) as singles, _client(address) as client:
        began = time.perf_counter()
        statuses = {client.post(path, content=content).status_code for _ in range(TIMES)}
        took = (time.perf_counter() - began) / TIMES
    status = ", ".join(map(str, sorted(statuses)))
    waits = {HEALTH: round(max(healths) * 1e3, 1), ROW: round(max(singles) * 1e3, 1)}
    return Row(what, {}, {"at": path, "bytes": len(content), "status": status, ANSWER: took * 1e3, **waits})


@contextmanager
def others(address: str, ask: Callable[[httpx.Client], httpx.Response]) -> Iterator[list[float]]:
    """Another client, and how long each of its requests took."""
    seconds, ended = list[float](), threading.Event()

    def run() -> None:
        with _client(address) as client:
            while not ended.is_set():
                began = time.perf_counter()
                assert (answer := ask(client)).status_code == 200, answer.text
                seconds.append(time.perf_counter() - began)
                time.sleep(PAUSE)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield seconds
    finally:
        ended.set()
        thread.join()


def _client(address: str) -> httpx.Client:
    headers = {"content-type": "application/json"}
    return httpx.Client(base_url=address, headers=headers, timeout=120, trust_env=False)


def resident_mebibytes() -> float:
    """Of the endpoint's processes, once what was freed is given back."""
    time.sleep(2.0)
    return sum(child.memory_info().rss for child in psutil.Process().children(recursive=True)) / MEBI


def looks_by_lag(address: str) -> dict[float, float]:
    """How often the endpoint has found its event loop no later than so many seconds."""
    text = httpx.get(f"{address}/metrics", trust_env=False).text
    found = re.findall(r'^sparsehub_event_loop_lag_seconds_bucket\{le="([^"]+)"\} (\S+)', text, re.MULTILINE)
    return {float(end): float(count) for end, count in found}


if __name__ == "__main__":
    main()
