"""Values that are one of a few names: help shows them, shells complete them, a misspelt one is told the nearest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import typer

from sparsehub.cli import export, keys, materialize, merge
from sparsehub.cli.app import app
from sparsehub.cli.choices import completion, one_of


def test_the_names_are_those_of_the_code_behind() -> None:
    from serving.auth.keys import ROLES
    from sparsehub.backbone.backbone import dtype_named
    from sparsehub.convert.merge import MERGES

    assert merge.METHODS == MERGES and set(keys.ROLES) == set(ROLES) and export.FORMATS == ("shira",)
    assert [str(dtype_named(name)) for name in materialize.DTYPES] == [f"torch.{name}" for name in materialize.DTYPES]


def test_few_names_stand_in_the_place_of_the_value_and_many_in_the_help() -> None:
    few, many = one_of(("one", "two"), "How."), one_of(tuple(f"name-{i}" for i in range(9)), "How.")
    assert (few.metavar, few.help) == ("one|two", "How.")
    assert many.metavar is None and many.help.startswith("How. One of name-0, name-1")
    assert completion(("float16", "float32", "int8"))("fl") == ["float16", "float32"]


@pytest.mark.parametrize(
    ("verb", "option", "begun", "expected"),
    [
        ("merge", "--method", "d", ["dare", "dare-ties"]),
        ("train", "--report-to", "", ["tensorboard", "wandb", "mlflow"]),
        ("train", "--kind", "text-", ["text-classification", "text-generation"]),
        ("serve", "--weights", "", ["float", "int8", "fp8", "nf4"]),
    ],
)
def test_a_shell_completes_values(verb: str, option: str, begun: str, expected: list[str]) -> None:
    root: Any = typer.main.get_command(app)
    context = root.commands[verb].make_context(verb, [], resilient_parsing=True)
    (parameter,) = (found for found in context.command.params if option in found.opts)
    assert [item.value for item in parameter.shell_complete(context, begun)] == expected


def test_help_marks_what_is_required(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    assert "[required]" in run("merge", "--help").out
    shown = " ".join(run("train", "--help").out.split())
    assert "The pretrained model: a folder, or an id" in shown and "[required" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("materialize", "P", "--backbone", "B", "--dtype", "flot16", "--out", "out"), "did you mean 'float16'?"),
        (("merge", "P", "P", "--method", "tie", "--out", "out", "--name", "n"), "did you mean 'ties'?"),
        (("merge", "P", "P", "--value-dtype", "int9", "--out", "out", "--name", "n"), "did you mean 'int8'?"),
        (("extract", "B", "--backbone", "B", "--value-dtype", "flot16", "--density", "0.1", "--out", "out",
          "--name", "n"), "unknown value dtype 'flot16', did you mean 'float16'?"),
        (("keys", "add", "keys.json", "me", "--role", "admn"), "unknown role 'admn', did you mean 'admin'?"),
        (("export", "P", "--backbone", "B", "--to", "shra", "--out", "out"), "did you mean 'shira'?"),
    ],
)  # fmt: skip
def test_a_misspelt_value_is_told_the_nearest_name(
    run: Any, tiny_tasks: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    places = {"P": tiny_tasks.write("one", seed=1), "B": tiny_tasks.folder}
    done = run(*(places.get(argument, argument) for argument in arguments))
    assert done.code == 2 and message in done.err.splitlines()[-1], done.err
    assert not (tmp_path / "out").exists() and not (tmp_path / "keys.json").exists()
