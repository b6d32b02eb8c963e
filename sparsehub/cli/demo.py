"""sparsehub demo: the main job in front of the reader, from three small data sets to served answers."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from sparsehub.cli.output import console, errors, progress, show_table
from sparsehub.errors import UsageError
from sparsehub.extras import require
from sparsehub.files import write_file
from sparsehub.package.units import size_text
from sparsehub.task_ref import parse_model

PACKAGES, HUB = "packages", "hub"  # in the demo's folder
BACKBONE = "sentence-transformers/all-MiniLM-L6-v2"
SHOWN_ROWS = 4  # answers printed per task
START_SECONDS = 120
SWITCHES = 60


@dataclass(frozen=True)
class DemoTask:
    """One of the demo's tasks: a folder of data, and the settings that `sparsehub train` gets."""

    name: str
    kind: str
    text: tuple[str, ...]
    epochs: float


TASKS = (
    DemoTask("topic", "text-classification", ("text",), 6),
    DemoTask("reply", "text-classification", ("text_a", "text_b"), 10),
    DemoTask("urgency", "regression", ("text",), 6),
)


def demo(
    data: Annotated[Path, typer.Option(help="The folder with the demo's data sets.")] = Path("examples/support"),
    out: Annotated[
        Path, typer.Option(help="The folder for packages and hub; what an earlier demo trained there is kept.")
    ] = Path("demo-run"),
    backbone: Annotated[str, typer.Option(help="A folder or an id of the Hugging Face Hub.")] = BACKBONE,
    port: Annotated[int, typer.Option(help="The port of the endpoint, on 127.0.0.1.")] = 3000,
) -> None:
    """Train three tasks, publish them, serve them from one backbone and ask them things."""
    require("bentoml", "demo")
    require("datasets", "demo")
    from serving.preflight import check_address

    if not (data / TASKS[0].name).is_dir():
        raise UsageError(f"there is no demo data in {data}", fix="run it in a clone of sparsehub, or give --data")
    if out.exists() and any(out.iterdir()) and not (out / PACKAGES).is_dir():
        raise UsageError(f"{out} is not the folder of a demo", fix="remove it, or give another --out")
    check_address("127.0.0.1", port)  # now, and not minutes later
    began = time.monotonic()
    _heading(1, f"train three tasks on one backbone, {backbone}")
    packages = [_train(task, data, out, backbone) for task in TASKS]
    _heading(2, f"publish them to a hub, the folder {out / HUB}")
    _publish(packages, out / HUB)
    _heading(3, f"serve all three from one copy of the backbone, on 127.0.0.1:{port}")
    with _endpoint(backbone, out / HUB, port) as url:
        answers = _ask(url, data)
    _show_answers(answers)
    _heading(4, "what it costs")
    _show_costs(packages, backbone)
    _show_next(packages, out, backbone, port, time.monotonic() - began)


def _heading(number: int, text: str) -> None:
    console.print(f"\n[bold cyan]{number}.[/] [bold]{text}[/]", highlight=False)


def _train(task: DemoTask, data: Path, out: Path, backbone: str) -> Path:
    from sparsehub.package import read_manifest
    from sparsehub.training import TrainConfig, train
    from sparsehub.training.run import run_identity

    folder = out / PACKAGES / task.name
    fields = ",".join(task.text)
    console.print(
        f"\n[dim]$[/] sparsehub train --backbone {backbone} --kind {task.kind} --name {task.name} "
        f"--text {fields} --train {data / task.name}/train.jsonl ... --out {folder}",
        highlight=False,
    )
    config = TrainConfig(
        backbone=backbone,
        kind=task.kind,
        name=task.name,
        text=task.text,
        out=str(folder),
        version="1.0.0",
        epochs=task.epochs,
        license="apache-2.0",
        train=str(data / task.name / "train.jsonl"),
        validation=str(data / task.name / "validation.jsonl"),
        test=str(data / task.name / "test.jsonl"),
    )
    record, identity = folder.with_name(f"{task.name}.identity"), run_identity(config)
    if folder.exists() and record.is_file() and record.read_text() == identity:
        progress("trained by an earlier demo with these settings and this data: kept")
    else:
        _forget(folder, out / HUB)
        train(config, report=progress)
        write_file(record, identity.encode())
    manifest = read_manifest(folder)
    metric = manifest.task.metrics[0]
    reached, baseline = manifest.metrics["test"][metric], manifest.metrics["test (majority)"][metric]
    probe = manifest.training["baselines"]["test"]["probe"][metric]
    console.print(
        f"[green]test {metric} {reached:.3f}[/] [dim](a linear head on the frozen backbone: {probe:.3f}; "
        f"always the commonest answer: {baseline:.3f})[/]"
    )
    return folder


def _forget(folder: Path, hub: Path) -> None:
    """Drop a package of an earlier demo, and the hub, in which its version is taken."""
    for place in (folder, hub):
        if place.exists():
            shutil.rmtree(place)


def _publish(packages: list[Path], hub: Path) -> None:
    from sparsehub.hub import open_hub

    for package in packages:
        resolved = open_hub(hub).publish(package)
        console.print(f"{resolved.name}@{resolved.version}  [dim]{resolved.digest}[/]", highlight=False)


@contextmanager
def _endpoint(backbone: str, hub: Path, port: int) -> Iterator[str]:
    """A served hub, ended with the block. Its log is kept beside the hub."""
    command = [
        sys.executable,
        "-m",
        "sparsehub",
        "serve",
        "--backbone",
        backbone,
        "--hub",
        str(hub),
        "--port",
        str(port),
    ]
    log = hub.parent / "endpoint.log"
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_until_ready(process, url, log)
        yield url
    finally:
        process.terminate()
        process.wait(timeout=60)


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            names = {parse_model(entry["id"]).task.name for entry in _call(f"{url}/v1/models")["data"]}
            if names.issuperset(task.name for task in TASKS):
                return
        except (OSError, ValueError, KeyError):
            time.sleep(0.3)
    raise UsageError(f"the endpoint did not start, see {log}", fix="give another --port if this one is taken")


def _call(url: str, body: dict[str, Any] | None = None) -> Any:
    data = json.dumps(body).encode() if body is not None else None
    request = urllib.request.Request(url, data, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)


def _ask(url: str, data: Path) -> list[tuple[DemoTask, dict[str, Any], Any]]:
    """Every test row of every task as its own request, the tasks mixed, sixteen clients at once."""
    rows = {task: _rows(data / task.name / "test.jsonl") for task in TASKS}
    longest = max(map(len, rows.values()))
    mixed = [(task, rows[task][i]) for i in range(longest) for task in TASKS if i < len(rows[task])]

    def ask(item: tuple[DemoTask, dict[str, Any]]) -> Any:
        task, row = item
        route = "score" if task.kind == "regression" else "classify"
        entry = {field: row[field] for field in task.text}
        return _call(f"{url}/v1/{route}", {"model": task.name, "input": [entry]})["data"][0]

    start = time.monotonic()
    with ThreadPoolExecutor(16) as clients:
        answers = list(clients.map(ask, mixed))
    seconds = time.monotonic() - start
    console.print(
        f"{len(mixed)} requests, three tasks mixed, 16 clients: {seconds:.1f} s, {len(mixed) / seconds:.0f} a second\n"
    )
    return [(task, row, answer) for (task, row), answer in zip(mixed, answers, strict=True)]


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _show_answers(answers: list[tuple[DemoTask, dict[str, Any], Any]]) -> None:
    shown = answers[: SHOWN_ROWS * len(TASKS)]
    table = []
    for task in TASKS:
        for owner, row, answer in shown:
            if owner is task:
                text = " | ".join(row[field] for field in task.text)
                table.append([task.name, text if len(text) < 64 else text[:61] + "...", _answer(answer), row["label"]])
    show_table(["task", "text", "answer", "label"], table)
    right = {t: [_is_right(row, a) for owner, row, a in answers if owner is t] for t in TASKS if t.kind != "regression"}
    for task, hits in right.items():
        console.print(f"[dim]{task.name}: {sum(hits)} of {len(hits)} answers are the label[/]")


def _answer(answer: dict[str, Any]) -> str:
    if "score" in answer:
        return f"{answer['score']:.1f}"
    return f"{answer['label']} ({max(answer['probs']):.2f})"


def _is_right(row: dict[str, Any], answer: dict[str, Any]) -> bool:
    return bool(answer["label"] == row["label"])


def _show_costs(packages: list[Path], backbone: str) -> None:
    from sparsehub.backbone import load_backbone
    from sparsehub.backbone.checkpoint import weight_files
    from sparsehub.engine.swap import Swap
    from sparsehub.package import read_package
    from sparsehub.patch import make_patch

    loaded = load_backbone(backbone)
    stored = sum(file.stat().st_size for file in weight_files(loaded.checkpoint.folder))
    sizes = {package.name: _folder_bytes(package) for package in packages}
    table = [[name, size_text(count), f"1/{stored / count:.0f} of the backbone"] for name, count in sizes.items()]
    show_table(["package", "size", ""], [*table, ["backbone", size_text(stored), ""]])
    patches = [make_patch(loaded, read_package(package).delta) for package in packages]
    swap, times, before = Swap(loaded.arena), [], loaded.arena.digest()
    for i in range(SWITCHES):
        start = time.perf_counter()
        swap.to(patches[i % len(patches)])
        times.append(time.perf_counter() - start)
    swap.to(None)
    same = "bit for bit the original" if loaded.arena.digest() == before else "NOT the original"
    console.print(
        f"a switch from one task to another: [green]{statistics.median(times) * 1000:.2f} ms[/] "
        f"(median of {SWITCHES}); afterwards the base weights are {same}"
    )


def _folder_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


def _show_next(packages: list[Path], out: Path, backbone: str, port: int, seconds: float) -> None:
    console.print(f"\n[bold green]done[/] in {seconds / 60:.1f} minutes. Go on with:\n", highlight=False)
    activate = "" if os.environ.get("VIRTUAL_ENV") else ". .venv/bin/activate\n"
    commands = (
        f"{activate}sparsehub inspect {packages[0]}\n"
        f"sparsehub ls {out}/hub\n"
        f"sparsehub serve --backbone {backbone} --hub {out}/hub --port {port}\n"
        f"curl localhost:{port}/v1/classify -H 'content-type: application/json' "
        '-d \'{"model": "topic", "input": ["My parcel is a week late"]}\'\n'
        f"sparsehub materialize topic@1.0.0 --hub {out}/hub --backbone {backbone} --out {out}/full/topic\n"
        "sparsehub train --help"
    )
    console.print(commands, highlight=False, markup=False)
    errors.print("[dim]README.md explains each of them.[/]")
