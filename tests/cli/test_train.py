from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sparsehub.package import read_package


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    texts = ["a good film", "a great cast", "fun to watch", "a bad ending", "a boring story", "awful and slow"] * 2
    lines = [json.dumps({"text": text, "label": ["good", "bad"][place % 6 // 3]}) for place, text in enumerate(texts)]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_train_writes_a_package_and_prints_one_json(run: Any, rows: Path, tiny_tasks: Any, tmp_path: Path) -> None:
    out = tmp_path / "package"
    config = tmp_path / "task.yaml"
    config.write_text(f"train: {rows}\nvalidation: {rows}\nepochs: 5\nkind: text-classification\n")
    data = ("--text", "text", "--label", "label", "--batch-size", 3, "--epochs", 1)
    method = ("--method", "random", "--density", 0.01)
    where = ("--backbone", tiny_tasks.folder, "--name", "mood", "--out", out)
    done = run("train", "--config", config, *where, *data, *method, "--json")
    assert done.code == 0, done.err
    assert len(done.out.splitlines()) == 1
    found, package = json.loads(done.out), read_package(out)
    assert found["package"] == str(out) and found["digest"] == package.digest
    assert found["nnz"] == package.delta.nnz and 0 < found["density"] <= 0.01
    assert package.manifest.training["epochs"] == 1, "a flag wins over the file"


def test_an_unknown_setting_names_the_nearest(run: Any, tmp_path: Path) -> None:
    config = tmp_path / "task.yaml"
    config.write_text("learning_rat: 1\n")
    done = run("train", "--config", config)
    assert done.code == 2 and len(done.err.splitlines()) == 1
    assert "learning_rat" in done.err and "did you mean 'learning_rate'" in done.err
