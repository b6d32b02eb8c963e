"""The whole engine under traffic: how many tasks cost how much, and whether it chooses well.

python -m benchmarks.engine            # traffic over 1 to 1,000 tasks, beside PEFT
python -m benchmarks.engine waits      # a rare task beside a hot one; the first answer of a task on disk
"""

from __future__ import annotations

import dataclasses
import json
import random
import statistics
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import Report, Row, in_turn, line_plot, write_report
from benchmarks.models import lora_model, save_encoder, whole_delta
from sparsehub.backbone import Backbone, load_backbone, open_checkpoint
from sparsehub.engine import Engine, Limits, Task
from sparsehub.engine.cost import MIXED, SWAP
from sparsehub.engine.runner import AUTO
from sparsehub.package import Manifest, Package, TaskSpec, read_package, write_package
from sparsehub.package.encoding import collate, encode
from sparsehub.package.manifest import BackboneRef, DeltaRecord, TouchedParameter

BACKBONE = "sentence-transformers/all-MiniLM-L6-v2"
TASKS = (1, 4, 16, 64, 256, 1000)
TRAFFIC = ("uniform", "zipf", "one hot")
BATCH_ROWS, ROWS, ROUNDS = 64, 384, 5
PEFT_TASKS, PEFT_ROUNDS, PEFT = 64, 2, "PEFT LoRA r=8, adapter_names"
MODES = {"sparsehub, its own choice": AUTO, "sparsehub, swap only": SWAP, "sparsehub, mixed where possible": MIXED}
OWN = next(iter(MODES))
SPEC = TaskSpec(
    "text-classification", ("a", "b", "c"), "single_label_classification", ("text",), "label", 128, ("accuracy",)
)


def main() -> None:
    warnings.filterwarnings("ignore")
    torch.set_grad_enabled(False)
    waits() if sys.argv[1:] == ["waits"] else traffic()


# traffic


def traffic() -> None:
    backbone, texts = load_backbone(BACKBONE), example_texts()
    engine = Engine(backbone, Limits(queue_rows=4 * ROWS, batch_rows=BATCH_ROWS))
    package = random_package(backbone, 0)
    base = package.manifest.backbone
    for number in range(max(TASKS)):
        engine.add(dataclasses.replace(package, **numbered(package, backbone, number)))
        if number % 100 == 0:
            print(f"{number} tasks in memory, {engine.usage.device_bytes / 2**20:.0f} MiB", file=sys.stderr, flush=True)
    engine.start()
    lora = lora_model(backbone.checkpoint.folder, PEFT_TASKS)
    rows = [row for kind in TRAFFIC for row in measure(engine, lora, kind, texts)]
    engine.stop()
    report = Report("engine", f"Traffic over many tasks on {base.id}", rows, NOTES, checks_of(rows))
    print(write_report(report, str(torch.get_num_threads())))
    zipf = {case: [figure(rows, "zipf", tasks, case, "rows a second") for tasks in TASKS] for case in MODES}
    peft = [figure(rows, "zipf", tasks, PEFT, "rows a second") for tasks in TASKS if tasks <= PEFT_TASKS]
    title = "Rows a second, Zipf traffic over many tasks on one backbone"
    line_plot("engine", title, TASKS, {**zipf, PEFT: peft}, ("tasks", "rows a second"))


NOTES = (
    "All rows of a case are queued at once and answered through the engine: tokenising, scheduling, switching or "
    "mixing, heads. All cases of one kind of traffic run in turn, every other round backwards, on the same texts; "
    "medians of five rounds, of two for PEFT.",
    "Texts are the demo's support tickets. Every task changes 0.5% of the backbone and has a head of its own.",
    "uniform: every task is as likely; zipf: the n-th task with weight 1 / n; one hot: every other row is of one task.",
    "PEFT's batches hold as many rows in the order of arrival, padded, without heads; adapters of rank 8 on all linear "
    "layers. More than 64 adapters were not tried.",
    "`of the better`: time against the better of swap only and mixed.",
)


def measure(engine: Engine, lora: Any, kind: str, texts: Sequence[str]) -> list[Row]:
    """Every way of running the same texts over every number of tasks, all in turn: one slow minute slows them all."""
    choices = random.Random(kind)
    drawn = [choices.choice(texts) for _ in range(ROWS)]
    calls: dict[tuple[int, str], Callable[[], Any]] = {}
    for tasks in TASKS:
        rows = list(zip(draw(kind, tasks, ROWS, choices), drawn, strict=True))
        for name, mode in MODES.items():
            calls[tasks, name] = lambda mode=mode, rows=rows: serve(engine, mode, rows)
        if tasks <= PEFT_TASKS:
            calls[tasks, PEFT] = lambda rows=rows: run_lora(engine, lora, rows)
    seconds = {cell: statistics.median(found[1:]) for cell, found in seconds_of(calls, kind).items()}
    return [row_of(kind, tasks, name, seconds) for tasks, name in seconds]


Cell = tuple[int, str]


def seconds_of(calls: Mapping[Cell, Callable[[], Any]], kind: str) -> dict[Cell, list[float]]:
    """Seconds of every round of every cell; the first round warms up."""
    seconds: dict[Cell, list[float]] = {cell: [] for cell in calls}
    for cell in in_turn(list(calls), ROUNDS + 1):
        if cell[1] == PEFT and len(seconds[cell]) > PEFT_ROUNDS:
            continue
        start = time.perf_counter()
        calls[cell]()
        seconds[cell].append(time.perf_counter() - start)
        print(kind, *cell, f"{ROWS / seconds[cell][-1]:.0f} rows a second", file=sys.stderr, flush=True)
    return seconds


def row_of(kind: str, tasks: int, name: str, seconds: Mapping[Cell, float]) -> Row:
    measured = {"rows a second": ROWS / seconds[tasks, name]}
    if name in MODES:
        best = min(seconds[tasks, other] for other, mode in MODES.items() if mode != AUTO)
        measured["of the better"] = seconds[tasks, name] / best
    return Row(name, {"traffic": kind, "tasks": tasks, "rows": ROWS, "key": [kind, tasks]}, measured)


def draw(kind: str, tasks: int, count: int, choices: random.Random) -> list[int]:
    """The tasks of so many rows."""
    if kind == "one hot":
        return [0 if choices.random() < 0.5 else choices.randrange(tasks) for _ in range(count)]
    weights = [1 / (number + 1) if kind == "zipf" else 1.0 for number in range(tasks)]
    return choices.choices(range(tasks), weights, k=count)


def serve(engine: Engine, mode: str, rows: Sequence[tuple[int, str]]) -> None:
    engine.mode = mode
    futures = [engine.classify(f"task{number}", [text]).futures[0] for number, text in rows]
    for future in futures:
        future.result(600)


def run_lora(engine: Engine, lora: Any, rows: Sequence[tuple[int, str]]) -> None:
    for start in range(0, len(rows), BATCH_ROWS):
        part = rows[start : start + BATCH_ROWS]
        batch = collate(engine.tokenizer, encode(SPEC, engine.tokenizer, [{"text": text} for _, text in part]))
        lora(**batch, adapter_names=[f"t{number}" for number, _ in part])


def figure(rows: Sequence[Row], kind: str, tasks: int, case: str, column: str) -> float:
    return float(next(r.measured[column] for r in rows if r.setup["key"] == [kind, tasks] and r.case == case))


def checks_of(rows: Sequence[Row]) -> list[str]:
    """The figures that the engine is held to, and whether they held in this run."""
    own = {(kind, tasks): figure(rows, kind, tasks, OWN, "rows a second") for kind in TRAFFIC for tasks in TASKS}
    worst = max(figure(rows, kind, tasks, OWN, "of the better") for kind in TRAFFIC for tasks in TASKS)
    lines = [verdict("its own choice against the better of swap and mixed, the worst of all cases", worst, 1.10)]
    for tasks in (64, 1000):
        share = own["zipf", tasks] / own["zipf", 1]
        lines.append(verdict(f"rows a second at {tasks:,} tasks, Zipf, of those at one task", share, 0.85, least=True))
    peft = figure(rows, "zipf", PEFT_TASKS, PEFT, "rows a second")
    lines.append(
        verdict(f"against PEFT at {PEFT_TASKS} tasks, Zipf, times", own["zipf", PEFT_TASKS] / peft, 2.5, least=True)
    )
    return lines


def verdict(what: str, value: float, limit: float, *, least: bool = False) -> str:
    held = value >= limit if least else value <= limit
    return f"{what}: {value:.3f}, at {'least' if least else 'most'} {limit:g}: {'held' if held else 'NOT held'}"


# waits


def waits() -> None:
    found = [rare_beside_hot(), first_answers()]
    rows, checks = [row for part, _ in found for row in part], [check for _, check in found]
    report = Report("engine_waits", "Waiting", rows, WAIT_NOTES, checks)
    print(write_report(report, str(torch.get_num_threads())))


WAIT_NOTES = (
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


# packages


def example_texts() -> list[str]:
    path = Path(__file__).parents[1] / "examples" / "support" / "topic" / "train.jsonl"
    return [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]


def random_package(backbone: Backbone, seed: int) -> Package:
    """A package in memory: a random delta of 0.5% and a random head."""
    from sparsehub.package.model import load_task_model

    delta = whole_delta(backbone, seed)
    task_model = load_task_model(open_checkpoint(str(backbone.checkpoint.folder)), SPEC)
    parameters = dict(task_model.model.named_parameters())
    head = {name: torch.randn_like(parameters[name]) * 0.1 for name in task_model.head}
    return Package(manifest_of(backbone, delta, seed), delta, head, f"sha256:{seed:064x}")


def numbered(package: Package, backbone: Backbone, number: int) -> dict[str, Any]:
    """What makes a package another task's."""
    delta = whole_delta(backbone, number)
    head = {name: tensor + 0.01 * number for name, tensor in package.head.items()}
    return {
        "manifest": manifest_of(backbone, delta, number),
        "delta": delta,
        "head": head,
        "digest": f"sha256:{number:064x}",
    }


def manifest_of(backbone: Backbone, delta: Any, number: int) -> Manifest:
    touched = {
        name: TouchedParameter(part.shape, backbone.digest_of(name), len(part.indices))
        for name, part in delta.parameters.items()
    }
    checkpoint, total = backbone.checkpoint, backbone.arena.numel
    ref = BackboneRef(BACKBONE, "", backbone.architecture, checkpoint.dtype, checkpoint.fingerprint, total)
    record = DeltaRecord("random", delta.nnz / total, delta.nnz, "add", "float16", touched)
    return Manifest(1, f"task{number}", "1.0.0", SPEC, ref, record, {})


def write_random(backbone: Backbone, number: int, path: Path) -> Path:
    package = random_package(backbone, number)
    write_package(path, package.manifest, package.delta, package.head, f"# task{number}\n", {})
    return path


def save_tokenizer(folder: Path) -> None:
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(open_checkpoint(BACKBONE).folder).save_pretrained(folder)


if __name__ == "__main__":
    main()
