"""extract, merge, diff and export as a user runs them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sparsehub.package import read_package
from sparsehub.package.task_spec import HeadSpec

LABELS = ("bad", "fair", "good")


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    texts = ["a good film", "a great cast", "fun to watch", "a bad ending", "a boring story", "awful and slow"]
    path.write_text("".join(json.dumps({"text": t, "label": LABELS[i % 3]}) + "\n" for i, t in enumerate(texts)))
    return path


@pytest.fixture
def tuned(tiny_tasks: Any, tmp_path: Path) -> Path:
    """A classifier on the tiny backbone in which everything changed a little."""
    import torch
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(2)
    model = AutoModelForSequenceClassification.from_pretrained(
        tiny_tasks.folder, num_labels=3, id2label=dict(enumerate(LABELS)), label2id={n: i for i, n in enumerate(LABELS)}
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    model.save_pretrained(tmp_path / "tuned")
    return tmp_path / "tuned"


def test_a_linear_head_comes_from_the_package_that_describes_the_task(
    run: Any, tiny_tasks: Any, tuned: Path, tmp_path: Path
) -> None:
    described = tiny_tasks.write("described", seed=3, head=HeadSpec("linear", "mean", False, "joint"))
    common = (tuned, "--backbone", tiny_tasks.folder, "--name", "mood", "--drop", "classifier.*")
    done = run("extract", *common, "--task-of", described, "--out", tmp_path / "out")
    assert done.code == 0, done.err
    found, expected = read_package(tmp_path / "out"), read_package(described)
    assert found.manifest.task == expected.manifest.task
    assert {name: t.tolist() for name, t in found.head.items()} == {n: t.tolist() for n, t in expected.head.items()}


def test_extract_tells_what_it_kept_and_what_that_cost(
    run: Any, tiny_tasks: Any, tuned: Path, rows: Path, tmp_path: Path
) -> None:
    common = ("--backbone", tiny_tasks.folder, "--name", "mood", "--test", rows)
    done = run("extract", tuned, *common, "--out", tmp_path / "exact", "--json")
    assert done.code == 0, done.err
    exact = json.loads(done.out)
    assert exact["pays"] is False and exact["value_kind"] == "set"
    assert exact["metrics"]["before"]["test"] == exact["metrics"]["after"]["test"]
    package = read_package(tmp_path / "exact")
    assert package.manifest.metrics == exact["metrics"]["after"] and package.digest == exact["digest"]
    done = run("extract", tuned, *common, "--out", tmp_path / "cut", "--density", 0.01)
    assert done.code == 0, done.err
    assert "test before" in done.out and "test after" in done.out and "of the change's squared norm" in done.out
    assert "encoder.layer.1" in done.out and "what it came from: the sparse file pays" in done.out
    assert run("verify", tmp_path / "cut", "--backbone", tiny_tasks.folder).code == 0
    told = read_package(tmp_path / "cut").manifest.training["before_packaging"]
    assert told["metrics"]["test"] == exact["metrics"]["before"]["test"]
    assert "## Where it is right" in (tmp_path / "cut" / "README.md").read_text()
    assert not list(tmp_path.glob(".sparsehub*"))


def test_test_rows_are_read_as_the_user_says(
    run: Any, tiny_tasks: Any, tuned: Path, rows: Path, tmp_path: Path
) -> None:
    """The same rows in a file whose layout nobody could guess give the same metrics; what is not read is refused."""
    cells = [json.loads(line) for line in rows.read_text().splitlines()]
    odd = tmp_path / "rows.csv"
    odd.write_text("text|label\n" + "".join(f"{row['text']}|{row['label']}\n" for row in cells), encoding="utf-16-be")
    common = ("extract", tuned, "--backbone", tiny_tasks.folder, "--name", "mood", "--no-check")
    layout = ("--delimiter", "|", "--quoting", "none", "--encoding", "utf-16-be")
    plain = run(*common, "--out", tmp_path / "plain", "--test", rows, "--json")
    done = run(*common, "--out", tmp_path / "odd", "--test", odd, "--json", *layout)
    assert done.code == 0 and "6 rows" in done.err, done.err
    assert json.loads(done.out)["metrics"] == json.loads(plain.out)["metrics"]
    for flags, message in (
        (("--quoting", "both", "--test", odd), "--quoting: unknown quoting 'both' (known: double, escaped, none)"),
        (("--delimiter", "|"), "--delimiter: nothing is read so; to do: give --test as well"),
        (("--delimiter", "|", "--test", rows), "--delimiter can only be given for CSV and TSV files"),
    ):
        done = run(*common, "--out", tmp_path / "no", *flags)
        assert done.code == 2 and message in done.err and not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--density", 0.1, "--nnz", 3), "two ways to say the same"),
        (("--density", 0), "density is a share"),
        (("--nnz", 0), "at least 1"),
        (("--value-dtype", "int8"), "lossless package keeps"),
        (("--kind", "regressio"), "unknown kind 'regressio', did you mean 'regression'"),
    ],
)
def test_extract_refuses_in_one_line(
    run: Any, tiny_tasks: Any, tuned: Path, tmp_path: Path, flags: tuple[Any, ...], message: str
) -> None:
    out = tmp_path / "out"
    done = run("extract", tuned, "--backbone", tiny_tasks.folder, "--out", out, "--name", "mood", *flags)
    assert done.code == 2 and message in done.err and len(done.err.splitlines()) <= 2
    assert not out.exists()


def test_a_lora_becomes_a_package_with_before_and_after(run: Any, tiny_tasks: Any, rows: Path, tmp_path: Path) -> None:
    train = ("--train", rows, "--text", "text", "--kind", "text-classification", "--batch-size", 2, "--method", "lora")
    train = (*train, "--head", "transformers")
    done = run("train", "--backbone", tiny_tasks.folder, "--name", "mood", "--out", tmp_path / "mood", *train, "--json")
    assert done.code == 0, done.err
    lora = json.loads(done.out)["aside"]
    common = ("--backbone", tiny_tasks.folder, "--name", "again", "--task-of", tmp_path / "mood", "--test", rows)
    done = run("extract", lora, *common, "--out", tmp_path / "again", "--nnz", 500, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["nnz"] == 500 and 0 < found["share_of_squared_norm_kept"] < 1
    assert set(found["metrics"]["before"]["test"]) == set(found["metrics"]["after"]["test"])
    assert "say how many to keep" in run("extract", lora, *common, "--out", tmp_path / "no").err


def test_merge_and_diff_and_the_way_back(run: Any, tiny_tasks: Any, tmp_path: Path) -> None:
    one, two = tiny_tasks.write("one", seed=1), tiny_tasks.write("two", seed=2)
    done = run("merge", one, two, "--weights", "1,0.5", "--out", tmp_path / "both", "--name", "both", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["parents"] == ["one", "two"]
    done = run("merge", one, two, "--method", "ties", "--density", 0.5, "--out", tmp_path / "ties", "--name", "ties")
    assert "+1 one@1.0.0, +1 two@1.0.0" in done.out
    shown = run("diff", one, two)
    assert "Jaccard" in shown.out and "heads" in shown.out and "by layer" in shown.out
    told = json.loads(run("diff", one, two, "--json").out)
    assert 0 < told["jaccard"] < 1 and told["package"] is None
    done = run("diff", one, two, "--out", tmp_path / "way", "--name", "way")
    assert "on the backbone alone it is no task" in done.out
    assert run("merge", tmp_path / "way", one, "--out", tmp_path / "there", "--name", "there").code == 0
    again = json.loads(run("diff", tmp_path / "there", two, "--json").out)
    assert again["cosine"] == pytest.approx(1.0) and again["same_head"]
    assert "weights are numbers" in run("merge", one, two, "--weights", "1,x", "--out", "o", "--name", "n").err


def test_export_and_import_again(run: Any, tiny_tasks: Any, rows: Path, tmp_path: Path) -> None:
    train = ("--train", rows, "--text", "text", "--kind", "text-classification", "--batch-size", 2, "--density", 0.01)
    train = (*train, "--head", "transformers")
    scope = ("--method", "random", "--include", "encoder.layer.*.weight", "--exclude", "*Norm*")
    done = run("train", "--backbone", tiny_tasks.folder, "--name", "mood", "--out", tmp_path / "mood", *train, *scope)
    assert done.code == 0, done.err
    common = ("--backbone", tiny_tasks.folder)
    done = run("export", tmp_path / "mood", *common, "--out", tmp_path / "shira", "--json")
    assert done.code == 0, done.err
    back = ("--name", "mood", "--task-of", tmp_path / "mood", "--out", tmp_path / "back")
    assert run("extract", tmp_path / "shira", *common, *back).code == 0
    assert json.loads(run("diff", tmp_path / "mood", tmp_path / "back", "--json").out)["jaccard"] == 1.0
    done = run("export", tiny_tasks.write("all"), *common, "--out", tmp_path / "no")
    assert done.code == 2 and "Linear layers alone" in done.err
    head = tiny_tasks.write("alone", head=HeadSpec("linear", "mean", False, "joint"), delta=False)
    done = run("export", head, *common, "--out", tmp_path / "no")
    assert done.code == 2 and "changes none" in done.err and "unexpected" not in done.err
