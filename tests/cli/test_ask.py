"""Asking tasks on the command line, and measuring packages: `sparsehub ask` and `sparsehub evaluate`."""

from __future__ import annotations

import io
import json
import random
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sparsehub.api.ask as api_ask
from sparsehub.backbone import load_backbone
from sparsehub.engine import Engine
from sparsehub.package import read_package
from sparsehub.package.task_spec import HeadSpec

TEXTS = ["the fox", "a lazy dog", "it rains", "the quick brown fox jumps"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEHUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SPARSEHUB_HUB", raising=False)


def lines_of(done: Any) -> list[Any]:
    assert done.code == 0, done.err
    return [json.loads(line) for line in done.out.splitlines()]


def test_several_tasks_answer_as_the_materialised_models_do(
    run: Any, suite: Mapping[str, Path], tiny_tasks: Any, close: Any
) -> None:
    tasks = f"{suite['three']},{suite['rating']}"
    found = lines_of(run("ask", tasks, *TEXTS, "--backbone", tiny_tasks.folder, "--json"))
    assert [line["input"] for line in found] == TEXTS
    for line in found:
        three, rating = line["answers"]
        assert three["digest"] == read_package(suite["three"]).digest
        assert close(list(three["probs"].values()), tiny_tasks.reference(suite["three"])(line["input"]))
        assert three["label"] == max(three["probs"], key=three["probs"].get)
        assert close([rating["value"]], tiny_tasks.reference(suite["rating"])(line["input"]))


def test_a_table_for_people(run: Any, suite: Mapping[str, Path], tiny_tasks: Any) -> None:
    one = run("ask", suite["three"], TEXTS[0], "--backbone", tiny_tasks.folder)
    assert one.code == 0 and TEXTS[0] not in one.out and "label" in one.out and "loading" in one.err
    several = run("ask", suite["three"], *TEXTS, "--backbone", tiny_tasks.folder)
    assert all(text in several.out for text in TEXTS)


def test_texts_come_from_standard_input_or_a_file(
    run: Any, suite: Mapping[str, Path], tiny_tasks: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = lines_of(run("ask", suite["three"], *TEXTS, "--backbone", tiny_tasks.folder, "--json"))
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(TEXTS) + "\n\n"))
    assert lines_of(run("ask", suite["three"], "--backbone", tiny_tasks.folder, "--json")) == expected
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"id": 1, "text": text}) + "\n" for text in TEXTS))
    asked = ("ask", suite["three"], "--input", rows, "--jsonl", "--backbone", tiny_tasks.folder, "--json")
    found = lines_of(run(*asked))
    assert [line["answers"] for line in found] == [line["answers"] for line in expected]
    rows.write_text('{"text": "fine"}\nnot json\n')
    done = run(*asked)
    assert done.code == 2 and "rows.jsonl, line 2" in done.err


def test_an_input_that_one_task_cannot_read_fails_alone(
    run: Any, suite: Mapping[str, Path], tiny_tasks: Any, tmp_path: Path
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('"the fox"\n" "\n"a dog"\n')
    done = run("ask", suite["three"], "--input", rows, "--jsonl", "--backbone", tiny_tasks.folder, "--json")
    found = [json.loads(line)["answers"][0] for line in done.out.splitlines()]
    assert done.code == 2 and "1 answers are missing" in done.err
    assert ["error" in answer for answer in found] == [False, True, False]


def test_texts_are_queued_for_all_tasks_before_one_is_awaited(
    suite: Mapping[str, Path], tiny_tasks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that what the tasks share of a text runs once."""
    events, classify, answer = [], Engine.classify, api_ask._answer

    def queued(*asked: Any, **options: Any) -> Any:
        events.append("queued")
        return classify(*asked, **options)

    def awaited(*row: Any) -> Any:
        events.append("awaited")
        return answer(*row)

    monkeypatch.setattr(Engine, "classify", queued)
    monkeypatch.setattr(api_ask, "_answer", awaited)
    packages = [read_package(suite[name]) for name in ("three", "seven", "several")]
    found = list(api_ask.ask(packages, TEXTS, load_backbone(str(tiny_tasks.folder))))
    assert events == ["queued"] * 3 + ["awaited"] * 3 * len(TEXTS)
    assert [[bool(its.prediction) for its in answers] for _, answers in found] == [[True] * 3] * len(TEXTS)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing"], "no package folder"),
        ([","], "no task is named"),
        (["{three}", "a text", "--input", "rows.txt"], "not both"),
        (["{three}", "--input", "nowhere.txt"], "cannot be read"),
    ],
)
def test_mistakes_are_one_line(
    run: Any, suite: Mapping[str, Path], tiny_tasks: Any, arguments: list[str], said: str
) -> None:
    given = [argument.format(three=suite["three"]) for argument in arguments]
    done = run("ask", *given, "--backbone", tiny_tasks.folder)
    assert done.code == 2 and said in done.err and "Traceback" not in done.err


def test_the_hub_may_stand_in_the_environment(
    run: Any, suite: Mapping[str, Path], tiny_tasks: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPARSEHUB_HUB", str(tmp_path / "hub"))
    assert run("push", suite["three"]).code == 0
    assert "three@1.0.0" in run("ls").out and "three@1.0.0" in run("search").out
    assert run("show", "three").code == run("verify", "three").code == run("inspect", "three").code == 0
    assert run("verify", suite["seven"]).code == 0, "a package folder stays one"
    assert lines_of(run("ask", "three", "the fox", "--backbone", tiny_tasks.folder, "--json"))


@pytest.fixture
def labelled(tmp_path: Path, suite: Mapping[str, Path], tiny_tasks: Any) -> Path:
    """Rows of which the task `three` gets about two of three right."""
    choices, reference = random.Random(1), tiny_tasks.reference(suite["three"])
    rows = []
    for number in range(30):
        text = " ".join(choices.choices(["the", "fox", "a", "dog", "rain", "quick", "lazy"], k=1 + number % 9))
        label = int(np.argmax(reference(text))) if number % 3 else choices.randrange(3)
        rows.append({"text": text, "label": f"label{label}"})
    path = tmp_path / "labelled.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_evaluate_gives_scores_confusion_and_the_worst_rows(
    run: Any, suite: Mapping[str, Path], tiny_tasks: Any, labelled: Path
) -> None:
    asked = ("evaluate", suite["three"], "--test", labelled, "--backbone", tiny_tasks.folder, "--worst", 3)
    (found,) = lines_of(run(*asked, "--json"))
    rows = [json.loads(line) for line in labelled.read_text().splitlines()]
    reference = tiny_tasks.reference(suite["three"])
    probabilities = [np.asarray(reference(row["text"])) for row in rows]
    gold = [int(row["label"][-1]) for row in rows]
    right = [int(p.argmax()) == g for p, g in zip(probabilities, gold, strict=True)]
    assert found["rows"] == 30 and found["metrics"]["accuracy"] == pytest.approx(np.mean(right), abs=1e-6)
    matrix = np.asarray(found["confusion"])
    assert matrix.sum() == 30 and matrix.trace() == sum(right)
    losses = sorted((-np.log(p[g]) for p, g in zip(probabilities, gold, strict=True)), reverse=True)
    assert [row["loss"] for row in found["worst"]] == pytest.approx(losses[:3], abs=1e-3)
    shown = run(*asked).out
    assert "confusion matrix" in shown and "the worst rows" in shown and "accuracy" in shown


def test_evaluate_compares_with_the_probe_of_training_on_the_same_rows(
    run: Any, suite: Mapping[str, Path], tiny_tasks: Any, labelled: Path, tmp_path: Path
) -> None:
    asked = ("evaluate", suite["three"], "--test", labelled, "--backbone", tiny_tasks.folder, "--probe", labelled)
    (found,) = lines_of(run(*asked, "--json"))
    trained = {"kind": "text-classification", "name": "head", "text": "text", "method": "head", "epochs": 1}
    named = [word for name, value in trained.items() for word in (f"--{name}", value)]
    flags = ("--backbone", tiny_tasks.folder, "--train", labelled, "--test", labelled, "--out", tmp_path / "head")
    (made,) = lines_of(run("train", *named, *flags, "--json"))
    of_training = made["training"]["baselines"]["test"]["probe"]
    assert found["probe"]["metrics"] == pytest.approx({name: of_training[name] for name in found["metrics"]}, abs=1e-6)
    assert found["probe"]["fitted_on"] == 30
    gap, wins = found["probe"]["difference"], found["metrics"]["accuracy"] - found["probe"]["metrics"]["accuracy"]
    assert gap["better"] - gap["worse"] == round(30 * wins)
    shown = run(*asked).out
    assert "probe, fitted on 30 rows" in shown and "rows than the probe, worse on" in shown
    strange = tmp_path / "strange.jsonl"
    strange.write_text('{"text": "the fox", "label": "label0"}\n{"text": "a dog", "label": "other"}\n')
    refused = run(*asked[:-1], strange)
    assert refused.code == 2 and re.search(r"line 2 of .*strange\.jsonl.*found: 'other'", refused.err), refused.err
    strange.write_text('{"Text": "the fox", "label": "label0"}\n')
    renamed = "did you mean 'Text'? rename it in the file to 'text'"
    assert renamed in run(*asked[:-1], strange).err, "there is no flag for what a package says"


def rows_of(kind: str, fields: tuple[str, ...]) -> list[dict[str, Any]]:
    """Rows whose label a linear head can see: of which of two words there is more."""
    choices, rows = random.Random(3), []
    for number in range(60):
        fox = number % 2
        words = [
            " ".join(choices.choices(["fox", "rain", "a"], weights=[9 * fox, 9 - 9 * fox, 1], k=6)) for _ in fields
        ]
        label = {"regression": float(fox), "multi-label-classification": ["label0"] if fox else ["label1", "label2"]}
        rows.append({**dict(zip(fields, words, strict=True)), "label": label.get(kind, f"label{fox}")})
    return rows


@pytest.mark.parametrize(
    "kind, fields, head",
    [
        ("multi-label-classification", ("text",), None),
        ("regression", ("text_a", "text_b"), None),
        ("text-classification", ("text_a", "text_b"), HeadSpec("linear", "mean", normalize=True, pair="separate")),
    ],
)
def test_a_probe_stands_beside_every_kind_that_may_have_a_linear_head(
    run: Any, tiny_tasks: Any, tmp_path: Path, kind: str, fields: tuple[str, ...], head: Any
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in rows_of(kind, fields)))
    package = tiny_tasks.write("probed", kind, fields=fields, head=head)
    asked = ("evaluate", package, "--test", rows, "--probe", rows, "--backbone", tiny_tasks.folder)
    (found,) = lines_of(run(*asked, "--json"))
    probe = found["probe"]
    assert probe["metrics"].keys() == found["metrics"].keys() and probe["fitted_on"] == 60
    name = {"regression": "mse", "multi-label-classification": "micro_f1"}.get(kind, "accuracy")
    scores = {which["metrics"][name] for which in (found, probe)}
    assert probe["metrics"][name] == (min if name == "mse" else max)(scores), "it was made to be seen by one"
    if kind == "multi-label-classification":  # rows are not judged by themselves
        assert probe["difference"] is None
    else:
        assert probe["difference"]["worse"] > probe["difference"]["better"] and probe["difference"]["p"] < 0.05
    assert run(*asked).code == 0


def test_kinds_that_have_no_probe_say_so(run: Any, tiny_tasks: Any, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"tokens": ["the", "fox"], "label": ["label0", "label1"]}\n')
    tagged = tiny_tasks.write("tagged", "token-classification", fields=("tokens",))
    done = run("evaluate", tagged, "--test", rows, "--probe", rows, "--backbone", tiny_tasks.folder)
    assert done.code == 2 and "no probe" in done.err and "multiple-choice" in done.err, done.err


def test_evaluate_compares_two_packages_of_a_task(
    run: Any, suite: Mapping[str, Path], tiny_tasks: Any, labelled: Path, tmp_path: Path
) -> None:
    other = tiny_tasks.write("three", labels=3, seed=77, version="2.0.0")
    asked = ("evaluate", suite["three"], "--test", labelled, "--backbone", tiny_tasks.folder, "--against")
    (found,) = lines_of(run(*asked, other, "--json"))
    gap = found["difference"]
    wins = found["metrics"]["accuracy"] - found["against"]["metrics"]["accuracy"]
    assert gap["better"] - gap["worse"] == round(30 * wins)
    (same,) = lines_of(run(*asked, shutil.copytree(suite["three"], tmp_path / "copy"), "--json"))
    assert same["difference"]["p"] == 1.0 and same["difference"]["better"] == same["difference"]["worse"] == 0
    refused = run(*asked, suite["seven"])
    assert refused.code == 2 and "different tasks" in refused.err
