"""The demo: what a clone carries for it, and the whole of it as a newcomer runs it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from sparsehub.cli import output
from sparsehub.cli.demo import TRAINED, train_live
from sparsehub.cli.demo_tasks import CARRIED, CLOSED, LIVE, LIVE_SOURCE, TASKS
from sparsehub.package import Manifest, read_manifest, validate_package
from tests.support.endpoint_processes import free_port

ROOT = Path(__file__).parents[2]
DATA = ROOT / "examples" / "support"
PACKAGES = DATA / CARRIED


def test_a_clone_carries_the_packages_that_it_pins() -> None:
    pinned = json.loads((PACKAGES / "digests.json").read_text())
    assert set(pinned) == {task.name for task in TASKS}
    assert {name: validate_package(PACKAGES / name).digest for name in pinned} == pinned


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_they_beat_a_linear_head_on_the_frozen_backbone(task: object) -> None:
    beats_its_probe(read_manifest(PACKAGES / task.name))  # type: ignore[attr-defined]


def beats_its_probe(manifest: Manifest) -> None:
    metric = manifest.task.metrics[0]
    assert manifest.delta is not None
    assert manifest.metrics["test"][metric] > manifest.training["baselines"]["test"]["probe"][metric]


def test_every_reply_closes_its_ticket_or_does_not() -> None:
    assert sorted(CLOSED) == sorted(read_manifest(PACKAGES / LIVE_SOURCE).task.labels)


def masked(text: str) -> str:
    """The demo's output without what differs from run to run and from machine to machine: times, ports, scores."""
    text = re.sub(
        r"[\d.]+(?= (?:s|ms|requests|texts)\b)|(?<=else: )\d+|(?<=--port )\d+|(?<=127\.0\.0\.1:)\d+", "#", text
    )
    text = re.sub(r"(?m)(?<=^closed  )(?:yes|no)\b", "?", text)
    text = re.sub(r"(?m)(?<=^task    answer) +", "  ", text)
    scores = r"(?<=sha256:)[0-9a-f]{12}|(?<![@.\d])\d\.\d{1,3}(?![.\d]| MiB)"
    return re.sub(scores, lambda found: re.sub(r"[0-9a-f]", "#", found[0]), text)


@pytest.mark.slow
def test_the_whole_demo_runs_as_it_was_looked_at_and_keeps_what_it_has_trained(
    run: Any, tmp_path: Path, real_backbone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a clone's folder, on a screen of 80 columns: its output is that of tests/golden/cli/demo.txt."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(output.console, "width", 80)
    monkeypatch.setenv("VIRTUAL_ENV", "")
    done = run("demo", "--port", free_port())
    assert done.code == 0, done.out + done.err
    for said in ("bit for bit the original", "the running endpoint serves it", LIVE.name, "3 tasks: ", "done"):
        assert said in done.out
    assert "\r" not in done.out and not re.search(r"\x1b\[", done.out), "fit for a log file"
    shown = "".join(line.rstrip() + "\n" for line in masked(done.out).splitlines())
    assert shown == (ROOT / "tests" / "golden" / "cli" / "demo.txt").read_text(encoding="utf-8")
    assert max(map(len, shown.splitlines())) <= 80
    beats_its_probe(read_manifest(tmp_path / "demo-run" / TRAINED / LIVE.name))
    progress: list[str] = []
    monkeypatch.setattr("sparsehub.cli.demo.progress", progress.append)
    train_live(DATA, Path("demo-run"))
    assert "by an earlier demo" in progress[0]
