"""The demo: what a clone carries for it, and the whole of it as a newcomer runs it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sparsehub.cli.demo import train_live
from sparsehub.cli.demo_tasks import CARRIED, LIVE, TASKS, TEAMS
from sparsehub.package import read_manifest, validate_package
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
    manifest = read_manifest(PACKAGES / task.name)  # type: ignore[attr-defined]
    metric = manifest.task.metrics[0]
    assert manifest.metrics["test"][metric] > manifest.training["baselines"]["test"]["probe"][metric]


def test_every_topic_has_one_team() -> None:
    topics = [topic for topics in TEAMS.values() for topic in topics]
    assert sorted(topics) == sorted(read_manifest(PACKAGES / "topic").task.labels)


@pytest.mark.slow
def test_the_whole_demo_runs_and_keeps_what_it_has_trained(
    tmp_path: Path, real_backbone: str, capsys: pytest.CaptureFixture[str]
) -> None:
    environment = {**os.environ, "COLUMNS": "100"}
    command = [sys.executable, "-m", "sparsehub", "demo", "--out", str(tmp_path / "demo"), "--port", str(free_port())]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    for said in ("bit for bit the original", "the running endpoint serves it", LIVE.name, "3 tasks: ", "done"):
        assert said in done.stdout
    assert "\r" not in done.stdout and not re.search(r"\x1b\[", done.stdout), "fit for a log file"
    train_live(DATA, tmp_path / "demo")
    assert "by an earlier demo" in capsys.readouterr().err
