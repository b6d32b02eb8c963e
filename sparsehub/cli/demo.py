"""sparsehub demo: one endpoint that answers for three tasks, and learns a fourth while it runs."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparsehub.cli.demo_tasks import BACKBONE, CARRIED, LIVE, LIVE_SOURCE, TASKS, DemoTask, live_row
from sparsehub.cli.output import console, progress, show_table
from sparsehub.errors import FormatError, UsageError
from sparsehub.extras import require
from sparsehub.files import write_file
from sparsehub.package.units import size_text

if TYPE_CHECKING:
    from sparsehub.cli.demo_endpoint import Endpoint
    from sparsehub.package import Manifest, Package

TRAINED, HUB, CATALOG = "packages", "hub", "demo"  # in the demo's own folder; the catalogue's name in the hub
TICKET = "My parcel is a week late and nobody answers. I want my money back."
REPLY = "Sorry about that. I have refunded the full amount to your card."
SHOWN_ROWS, OTHER_COLUMNS = 4, 48  # of each task; characters beside a row's text
CLIENTS = 16
DIGEST_SHOWN = len("sha256:") + 12  # characters


def demo(
    data: Annotated[Path, typer.Option(help="The folder with the demo's data sets.")] = Path("examples/support"),
    out: Annotated[
        Path, typer.Option(help="The folder for hub and packages; what an earlier demo trained there is kept.")
    ] = Path("demo-run"),
    port: Annotated[int, typer.Option(help="The port of the endpoint, on 127.0.0.1.")] = 3000,
) -> None:
    """Serve three small tasks from one backbone, ask them things, and add a fourth while the endpoint runs."""
    require("bentoml", "demo")
    require("accelerate", "demo")
    from serving.preflight import check_address
    from sparsehub.cli.demo_endpoint import running_endpoint

    if not (data / CARRIED).is_dir():
        raise UsageError(f"there is no demo data in {data}", fix="run it in a clone of sparsehub, or give --data")
    if out.exists() and any(out.iterdir()) and not (out / HUB).is_dir():
        raise UsageError(f"{out} is not the folder of a demo", fix="remove it, or give another --out")
    check_address("127.0.0.1", port)  # now, and not after the work
    began, hub = time.monotonic(), out / HUB
    _heading(1, f"Three small tasks, published to a hub: {hub}")
    packages = _publish_carried(data / CARRIED, hub)
    _heading(2, f"One endpoint for all, one copy of {BACKBONE}")
    names = {task.name for task in TASKS}
    with running_endpoint(BACKBONE, f"{hub}#{CATALOG}", port, out / "endpoint.log", names) as endpoint:
        _ask_one_ticket(endpoint, packages)
        progress(f"answered {time.monotonic() - began:.0f} s after the start")
        _ask_test_rows(endpoint, data)
        _heading(3, "What that costs")
        _show_costs(data / CARRIED, packages, data)
        _heading(4, "A fourth task, trained while it runs: does a reply close the ticket?")
        _add_live(endpoint, data, out)
    _show_next(hub, port, time.monotonic() - began)


def _heading(number: int, text: str) -> None:
    console.print(f"\n[bold cyan]{number}.[/] [bold]{text}[/]\n", highlight=False)


# the tasks that a clone brings


def _publish_carried(carried: Path, hub: Path) -> list[Package]:
    """Publish them in a new hub, and have its catalogue serve them."""
    from sparsehub.package import read_package

    if hub.exists():
        shutil.rmtree(hub)
    pinned = json.loads((carried / "digests.json").read_text())
    packages = [read_package(carried / task.name) for task in TASKS]
    for package in packages:
        name = package.manifest.name
        if package.digest != pinned[name]:
            raise FormatError(
                f"{carried / name} is not the package that this clone pins",
                found=package.digest,
                expected=pinned[name],
                fix="git checkout it, or make them again: python examples/support/make_packages.py",
            )
        _publish(carried / name, hub)
    return packages


def _publish(folder: Path, hub: Path) -> None:
    """`sparsehub push` and `sparsehub catalog add`."""
    from serving.catalog import CatalogEntry, change_catalog, changes, open_catalog
    from serving.catalog.storage import target_of
    from sparsehub.hub import open_hub

    opened = open_hub(hub)
    resolved = opened.publish(folder)
    name, target = target_of(f"{resolved.name}@{resolved.version}", opened)
    change_catalog(open_catalog(f"{hub}#{CATALOG}"), lambda found: changes.add(found, name, CatalogEntry(target)))
    console.print(f"   {name}@{resolved.version}  [dim]{resolved.digest[:DIGEST_SHOWN]}[/]", highlight=False)


# answers


def _ask_one_ticket(endpoint: Endpoint, packages: Sequence[Package]) -> None:
    """One ticket (and the reply to it) through all tasks, each beside what it scored on its test rows."""
    console.print(f"   ticket: {TICKET}\n   reply:  {REPLY}\n", highlight=False)
    fields = {"text": TICKET, "text_a": TICKET, "text_b": REPLY}
    rows = []
    for task, package in zip(TASKS, packages, strict=True):
        answer = _answer(endpoint, task, fields)
        rows.append([task.name, _shown(answer), *_scores(package.manifest)])
    show_table(["task", "answer", "test score", "frozen probe", "commonest answer"], rows)


def _answer(endpoint: Endpoint, task: DemoTask, row: dict[str, Any]) -> dict[str, Any]:
    entry = {field: row[field] for field in task.text}
    answer: dict[str, Any] = endpoint.ask(task.route, {"model": task.name, "input": [entry]})["data"][0]
    return answer


def _shown(answer: dict[str, Any]) -> str:
    if "score" in answer:
        return f"{answer['score']:.1f}"
    return f"{answer['label']} ({max(answer['probs']):.2f})"


def _scores(manifest: Manifest) -> list[str]:
    """The package's test score, the linear head's on the frozen backbone, and that of the commonest answer."""
    metric = manifest.task.metrics[0]
    probe = manifest.training["baselines"]["test"]["probe"][metric]
    majority = manifest.metrics["test (majority)"][metric]
    return [f"{metric} {manifest.metrics['test'][metric]:.3f}", f"{probe:.3f}", f"{majority:.3f}"]


def _ask_test_rows(endpoint: Endpoint, data: Path) -> None:
    """Every test row of every task as a request of its own, the tasks mixed, many clients at once."""
    rows = {task: _rows(data / task.name / "test.jsonl") for task in TASKS}
    longest = max(map(len, rows.values()))
    mixed = [(task, rows[task][i]) for i in range(longest) for task in TASKS if i < len(rows[task])]
    start = time.monotonic()
    with ThreadPoolExecutor(CLIENTS) as clients:
        answers = list(clients.map(lambda item: _answer(endpoint, *item), mixed))
    seconds = time.monotonic() - start
    console.print(
        f"\n   test rows of all three, mixed, {CLIENTS} clients: {len(mixed) / seconds:.0f} requests a second\n"
    )
    table, shown = [], dict.fromkeys(TASKS, 0)
    for (task, row), answer in zip(mixed, answers, strict=True):
        shown[task] += 1
        if shown[task] <= SHOWN_ROWS:
            table.append([task.name, _shown(answer), row["label"], _short(" | ".join(row[f] for f in task.text))])
    show_table(["task", "answer", "label", "text"], sorted(table, key=lambda line: line[0]))


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _short(text: str) -> str:
    """What has room beside the other columns."""
    room = max(20, min(44, console.width - OTHER_COLUMNS))
    return text if len(text) <= room else text[: room - 3] + "..."


# costs


def _show_costs(carried: Path, packages: Sequence[Package], data: Path) -> None:
    from sparsehub.backbone import load_backbone
    from sparsehub.backbone.checkpoint import weight_files
    from sparsehub.cli.demo_costs import folder_bytes, measure_speed, measure_switches

    backbone = load_backbone(BACKBONE)
    model = sum(file.stat().st_size for file in weight_files(backbone.checkpoint.folder))
    tasks, count = sum(folder_bytes(carried / task.name) for task in TASKS), len(TASKS)
    console.print(f"   {count} tasks: {size_text(tasks)} beside one backbone, against {count} x {size_text(model)}")
    switches = measure_switches(backbone, packages)
    exact = "bit for bit the original" if switches.exact else "NOT the original"
    console.print(
        f"   a switch between tasks: {switches.median_ms:.2f} ms;\n   afterwards the base weights are {exact}"
    )
    alone = [package for package in packages if len(package.manifest.task.text_fields) == 1]
    texts = [row["text"] for row in _rows(data / "topic" / "test.jsonl")]
    ours, plain = measure_speed(backbone, backbone.checkpoint, alone, texts)
    console.print(
        f"   {len(alone)} tasks mixed in the engine: {ours:.0f} texts a second;\n"
        f"   one plain transformers model, which does nothing else: {plain:.0f}"
    )


# a task that is added


def _add_live(endpoint: Endpoint, data: Path, out: Path) -> None:
    from sparsehub.package import read_manifest

    folder = train_live(data, out)
    manifest, began = read_manifest(folder), time.monotonic()
    _publish(folder, out / HUB)
    seconds = endpoint.wait_for({LIVE.name}, 60.0)
    console.print(f"   the running endpoint serves it {seconds + time.monotonic() - began:.1f} s later\n")
    console.print(f"   reply: {REPLY}\n", highlight=False)
    answer = _answer(endpoint, LIVE, {"text": REPLY})
    show_table(
        ["task", "answer", "test score", "frozen probe", "commonest answer"],
        [[LIVE.name, _shown(answer), *_scores(manifest)]],
    )


def train_live(data: Path, out: Path) -> Path:
    """The package of the live task; that of an earlier demo where settings and data are the same."""
    from sparsehub.training import train
    from sparsehub.training.run import run_identity

    rows, folder = out / "data" / LIVE.name, out / TRAINED / LIVE.name
    for split in ("train", "validation", "test"):
        lines = [json.dumps(live_row(row)) for row in _rows(data / LIVE_SOURCE / f"{split}.jsonl")]
        rows.mkdir(parents=True, exist_ok=True)
        write_file(rows / f"{split}.jsonl", "".join(f"{line}\n" for line in lines).encode())
    config = LIVE.config(rows, folder, BACKBONE)
    console.print(
        f"   [dim]$[/] sparsehub train --backbone {BACKBONE} \\\n"
        f"    --kind {LIVE.kind} --name {LIVE.name} --text text --epochs {LIVE.epochs:g} \\\n"
        f"    --train {rows}/train.jsonl ... --out {folder}",
        highlight=False,
    )
    record, identity = folder.with_name(f"{LIVE.name}.identity"), run_identity(config)
    if folder.exists() and record.is_file() and record.read_text() == identity:
        progress("trained by an earlier demo with these settings and this data: kept")
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    train(config, report=progress)
    write_file(record, identity.encode())
    return folder


def _show_next(hub: Path, port: int, seconds: float) -> None:
    console.print(f"\n[bold green]done[/] in {seconds:.0f} s. Go on with:\n", highlight=False)
    activate = "" if os.environ.get("VIRTUAL_ENV") else ". .venv/bin/activate\n"
    commands = (
        f"{activate}sparsehub ask topic,urgency 'The lamp arrived broken' --hub {hub}\n"
        f"sparsehub evaluate topic --hub {hub} \\\n    --test examples/support/topic/test.jsonl\n"
        f"sparsehub serve --backbone {BACKBONE} \\\n    --catalog '{hub}#{CATALOG}' --port {port}\n"
    )
    console.print(commands, highlight=False, markup=False)
    console.print(
        "[dim]With pip install -e '.\\[console]' and --console it has a page for browsers at\n"
        f"http://127.0.0.1:{port}/console/[/]",
        highlight=False,
    )
