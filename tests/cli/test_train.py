from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sparsehub.package import read_package

pytestmark = pytest.mark.usefixtures("imports_are_no_garbage")


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
    method = ("--method", "random", "--density", 0.01, "--head", "transformers")
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


def test_an_error_names_the_flag_or_the_key(run: Any, tmp_path: Path) -> None:
    config = tmp_path / "task.yaml"
    config.write_text(
        "backbone: b\nkind: text-generation\nname: n\ntrain: t\ntext: a\nout: o\npacking: true\nclip: -1\n"
    )
    for flags, message in (
        ((), "task.yaml.clip is out of range; found: -1; expected: at least 0"),
        (("--clip", "1", "--method", "sams"), "--method: unknown method 'sams', did you mean 'sam'?"),
        (("--clip", "1", "--kind", "regression"), "task.yaml.packing belongs to text-generation"),
        (
            ("--clip", "1", "--kind", "regression", "--no-packing", "--metric", "mse"),
            "--metric needs a validation split",
        ),
    ):
        done = run("train", "--config", config, *flags)
        assert (done.code, len(done.err.splitlines())) == (2, 1) and message in done.err, done.err
    assert (
        "--set method: unknown method 'sams'"
        in run("stability", config, "--out", "o", "--set", "method=sams", "--set", "clip=1").err
    )


def test_stability_writes_a_table_and_a_plot(run: Any, rows: Path, tiny_tasks: Any, tmp_path: Path) -> None:
    config = tmp_path / "task.yaml"
    config.write_text(
        f"backbone: {tiny_tasks.folder}\ntrain: {rows}\ntest: {rows}\nkind: text-classification\n"
        "text: text\nepochs: 1\nbatch_size: 4\nlearning_rate: 1e-2\n"
    )
    flags = ("--out", tmp_path / "out", "--refits", 1, "--seeds", 0, "--set", "method=random")
    done = run("stability", config, *flags, "--sweep", "density", "--densities", "0.01,0.05", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert [point["density"] for point in found["found"]] == pytest.approx([0.01, 0.05], rel=0.01)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"runs.jsonl", "stability.md", "sweep.png"}
    shown = run("stability", config, *flags, "--sweep", "density", "--densities", "0.01,0.05")
    assert "random on rows.jsonl" in shown.out and "Theorem 1" in shown.out
    for wrong, message in (
        (("--sweep", "seed"), "only the density can be swept"),
        (("--densities", "0.1"), "belong to a sweep"),
        (("--set", "method"), "a setting is name=value"),
    ):
        assert message in run("stability", config, "--out", tmp_path / "no", *wrong).err


def test_a_methods_own_options_stand_on_the_command_line(run: Any, rows: Path, tiny_tasks: Any, tmp_path: Path) -> None:
    common = ("--backbone", tiny_tasks.folder, "--kind", "text-classification", "--name", "mood", "--text", "text")
    data = ("--train", rows, "--epochs", 1, "--batch-size", 3, "--json")
    done = run(
        "train", *common, *data, "--method", "mixout", "--option", "probability=0.5", "--out", tmp_path / "mixed"
    )
    assert done.code == 0, done.err
    assert json.loads(done.out)["training"]["options"] == {"probability": 0.5}
    wrong = run("train", *common, *data, "--method", "mixout", "--option", "0.5", "--out", tmp_path / "no")
    assert wrong.code == 2 and "an option of a method is name=value" in wrong.err


def test_an_adapter_says_plainly_that_it_cannot_be_packaged(
    run: Any, rows: Path, tiny_tasks: Any, tmp_path: Path
) -> None:
    common = ("--backbone", tiny_tasks.folder, "--kind", "text-classification", "--name", "mood", "--text", "text")
    data = ("--train", rows, "--test", rows, "--epochs", 1, "--batch-size", 3, "--method", "adapter")
    done = run("train", *common, *data, "--out", tmp_path / "adapter")
    assert done.code == 0, done.err
    assert "measured, not packaged" in done.out and "test" in done.out
    assert "nothing here can be pushed or served" in done.err.replace("\n", " ")
    assert json.loads(run("train", *common, *data, "--out", tmp_path / "again", "--json").out)["package"] is None
