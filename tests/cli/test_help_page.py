"""Help can be read at 80 columns: no line is longer, no flag is cut, and usage names what its sections explain."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import typer

from sparsehub.cli.app import app


def verbs(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield path
    for name, found in getattr(group, "commands", {}).items():
        yield from verbs(found, (*path, name))


VERBS = list(verbs(typer.main.get_command(app)))


@pytest.mark.parametrize("width", [80, 100, 120])
def test_help_fits_and_says_every_flag_in_whole(run: Any, monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    root: Any = typer.main.get_command(app)
    for path in VERBS:
        shown = run(*path, "-h").out
        assert max(map(len, shown.splitlines())) <= width and "…" not in shown, path
        command = root
        for name in path:
            command = command.commands[name]
        context = command.make_context(path[-1] if path else "sparsehub", [], resilient_parsing=True)
        for option in (flag for found in context.command.params for flag in (*found.opts, *found.secondary_opts)):
            if option.startswith("-"):
                assert f"{option} " in shown or f"{option}\n" in shown, (path, option)


def test_help_says_first_how_a_verb_is_called(run: Any) -> None:
    assert run("ask", "-h").out.startswith("Usage: sparsehub ask [OPTIONS] TASKS [TEXTS...]\n\nAsk tasks about texts")
    assert run("keys", "-h").out.startswith("Usage: sparsehub keys [OPTIONS] COMMAND [ARGS...]\n")


def test_a_switch_takes_no_value_and_other_flags_say_which(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = [" ".join(line.split()) for line in run("train", "-h").out.splitlines()]
    assert "--json Print the result as one JSON object." in lines
    assert any(line.startswith("--method NAME How entries are chosen") for line in lines)
    assert any(line.startswith("--max-length N Tokens of one row") for line in lines)


def test_required_is_said_once(run: Any) -> None:
    shown = " ".join(run("serve", "-h").out.split())
    assert "an id of the Hugging Face Hub. [required]" in shown and "[required] [required]" not in shown
