"""What a benchmark writes: one section for each kind of CPU."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmarks import harness
from benchmarks.harness import RESULTS, Report, Row, without_places, write_report


def test_a_run_replaces_the_figures_of_its_own_kind_of_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    for kind, figure in (("one, avx2", 1.5), ("another, avx512", 2.5), ("one, avx2", 3.5)):
        monkeypatch.setattr(harness, "kind_of_cpu", lambda kind=kind: kind)
        row = Row("ours", {"batch": "all"}, {"times": figure})
        text = write_report(Report("speed", "Speed", [row], ["How to read it."], [f"held at {figure}"]), "1")
    assert text == (tmp_path / "speed.md").read_text(encoding="utf-8")
    assert text.startswith("# Speed\n\n- How to read it.\n\n## another, avx512\n")
    first, second = text.split("\n## ")[1:]
    assert "2.5" in first and "held at 2.5" in first and "3.5" not in first
    assert "3.5" in second and "held at 3.5" in second and "1.5" not in text
    lines = [json.loads(line) for line in (tmp_path / "speed.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(line["machine"]["kind"], line["measured"]["times"]) for line in lines] == [
        ("another, avx512", 2.5),
        ("one, avx2", 3.5),
    ]


def test_what_was_measured_before_there_were_kinds_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    (tmp_path / "speed.md").write_text("# Speed\n\n| old |\n", encoding="utf-8")
    (tmp_path / "speed.jsonl").write_text('{"case": "old", "machine": {"cpu": "x"}}\n', encoding="utf-8")
    text = write_report(Report("speed", "Speed", [Row("ours", {}, {"times": 1.0})]), "1")
    assert "old" not in text and f"## {harness.kind_of_cpu()}" in text
    assert "old" not in (tmp_path / "speed.jsonl").read_text(encoding="utf-8")


def test_commands_name_files_without_the_machine_they_lay_on() -> None:
    found = without_places("X=1 python -m a.b /home/me/packages/trec-0=/data/tasks/trec/test.jsonl --out /x/y here/z")
    assert found == "X=1 python -m a.b packages/trec-0=trec/test.jsonl --out x/y here/z"
    for file in [*RESULTS.glob("*.md"), *RESULTS.glob("*.jsonl")]:
        assert not re.search(r"(?<![\w.])/(tmp|home|root|work|mnt)/", file.read_text(encoding="utf-8")), file.name
