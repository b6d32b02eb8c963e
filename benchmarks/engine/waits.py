"""How long a rare task waits beside a hot one, and how long the first answer of a task on disk takes.

python -m benchmarks.engine.waits
"""

from __future__ import annotations

import dataclasses
import random
import statistics
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks.engine.many_tasks import BATCH_ROWS, serve
from benchmarks.harness import Report, Row, verdict, write_report
from benchmarks.models import save_encoder
from benchmarks.packages import BACKBONE, example_texts, numbered, random_package, save_tokenizer, write_random
from sparsehub.backbone import load_backbone
from sparsehub.engine import Engine, Limits, Task
from sparsehub.engine.batch_planner import AUTO
from sparsehub.package import read_package


def main() -> None:
    warnings.filterwarnings("ignore")
    torch.set_grad_enabled(False)
    found = [rare_beside_hot(), first_answers()]
    rows, checks = [row for part, _ in found for row in part], [check for _, check in found]
    report = Report("engine_waits", "Waiting", rows, NOTES, checks)
    print(write_report(report, str(torch.get_num_threads())))


NOTES = (
    "rare beside hot: requests of one row come at random moments (Poisson), 19 of 20 of the hot task, at 80% of the "
    "rows a second that the same mix reaches when it is queued at once. The rare task's fair share is the wait that "
    "the hot task's rows have at the same percentile.",
    "first answer: a package in its folder, never read before, is asked for while nothing runs; from the request to "
    "its answer, less one forward of the same row. The files are in the system's page cache.",
)


def rare_beside_hot() -> tuple[list[Row], str]:
    backbone, texts = load_backbone(BACKBONE), example_texts()
    engine = Engine(backbone, Limits(batch_rows=BATCH_ROWS))
    package = random_package(backbone, 0)
    for number in (0, 1):
        engine.add(dataclasses.replace(package, **numbered(package, backbone, number)))
    engine.start()
    choices = random.Random(1)
    asked = [(int(choices.random() < 0.05), choices.choice(texts)) for _ in range(1500)]
    start = time.perf_counter()
    serve(engine, AUTO, asked)
    rate = 0.8 * len(asked) / (time.perf_counter() - start)
    waits_of = open_loop(engine, asked, rate, choices)
    engine.stop()
    percentiles = {name: statistics.quantiles(found, n=100)[98] for name, found in waits_of.items()}
    ratio = percentiles["task1"] / percentiles["task0"]
    line = verdict("p99 wait of the rare task against its fair share", ratio, 3)
    setup = {"what": "rare beside hot", "rows": len(asked), "rows a second": round(rate)}
    named = {"task0": "hot task", "task1": "rare task"}
    rows = [
        Row(
            named[name],
            setup,
            {
                "rows": len(found),
                "median ms": statistics.median(found) * 1e3,
                "p99 ms": percentiles[name] * 1e3,
                "of the hot task's": percentiles[name] / percentiles["task0"],
            },
        )
        for name, found in waits_of.items()
    ]
    return rows, line


def open_loop(
    engine: Engine, rows: Sequence[tuple[int, str]], rate: float, choices: random.Random
) -> dict[str, list[float]]:
    """Seconds from request to answer, by task; requests do not wait for each other."""
    found: dict[str, list[float]] = {"task0": [], "task1": []}
    done, left = threading.Event(), [len(rows)]

    def finish(name: str, sent: float) -> None:
        found[name].append(time.perf_counter() - sent)
        left[0] -= 1
        if not left[0]:
            done.set()

    due = time.perf_counter()
    for number, text in rows:
        due += choices.expovariate(rate)
        time.sleep(max(0.0, due - time.perf_counter()))
        name, sent = f"task{number}", due  # from when it was due: a slow sender must not hide a wait
        future = engine.classify(name, [text]).futures[0]
        future.add_done_callback(lambda _, name=name, sent=sent: finish(name, sent))
    done.wait(600)
    return found


def first_answers() -> tuple[list[Row], str]:
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "encoder"
        save_encoder("12 x 768", folder)
        save_tokenizer(folder)
        backbone = load_backbone(str(folder))
        packages = [write_random(backbone, number, Path(root) / f"task{number}") for number in range(8)]
        engine = Engine(backbone)
        for path in packages:
            package = read_package(path)
            manifest = package.manifest
            engine.register(
                Task(manifest.name, manifest.version, manifest.digest, lambda path=path: read_package(path))
            )
        engine.start()
        forward, first = [], []
        for number in range(len(packages)):
            first.append(_timed(lambda number=number: serve(engine, AUTO, [(number, "my parcel is late")])))
            forward.append(_timed(lambda number=number: serve(engine, AUTO, [(number, "my parcel is late")])))
        engine.stop()
    extra = (statistics.median(first[1:]) - statistics.median(forward[1:])) * 1e3
    line = verdict("first answer of a task on disk beyond one forward, ms", extra, 50)
    setup = {"what": "first answer", "encoder": "12 x 768", "entries": package.delta.nnz}
    rows = [
        Row(
            "first answer",
            setup,
            {"median ms": statistics.median(first[1:]) * 1e3, "beyond a forward ms": extra},
        ),
        Row("answer of a task in memory", setup, {"median ms": statistics.median(forward[1:]) * 1e3}),
    ]
    return rows, line


def _timed(call: Callable[[], None]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
