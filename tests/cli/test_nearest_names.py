"""What is misspelt is told the nearest name, and never finds nothing in silence: values, metrics, channels, folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

KINDS = "text-classification"


@pytest.fixture
def hub(run: Any, tiny_tasks: Any, tmp_path: Path) -> Path:
    assert run("push", tiny_tasks.write("three", seed=1), tmp_path / "hub").code == 0
    return tmp_path / "hub"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("materialize", "P", "--backbone", "nowhere", "--out", "o", "--dtype", "flot16"), "--dtype: unknown dtype"),
        (("extract", "nowhere", "--backbone", "nowhere", "--name", "n", "--out", "o", "--kind", "regresion"),
         "--kind: unknown kind 'regresion', did you mean 'regression'?"),
        (("search", "nowhere", "--kind", "text-clasification"), f"did you mean '{KINDS}'?"),
        (("stability", "nowhere.yaml", "--out", "o", "--set", "metod=random"),
         "--set: unknown setting 'metod', did you mean 'method'?"),
        (("keys", "remove", "keys.json", "me"), "there is no key file at keys.json"),
    ],
)  # fmt: skip
def test_a_value_is_refused_before_anything_is_done(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run(*arguments)
    assert done.code == 2 and message in done.err and len(done.err.splitlines()) == 1, done.err
    assert list(tmp_path.iterdir()) == []


def test_a_search_that_finds_nothing_says_what_no_package_has(run: Any, hub: Path) -> None:
    for flags, message in (
        (("--metric", "acuracy>=0.1"), "unknown metric 'acuracy', did you mean 'accuracy'?"),
        (("--metric", "tests:accuracy>=0.1"), "unknown split 'tests', did you mean 'test'?"),
        (("--backbone", "no-such-model"), "unknown backbone 'no-such-model'"),
        (("--tag", "lates"), "unknown version or channel 'lates', did you mean 'latest'?"),
    ):
        done = run("search", hub, *flags)
        assert done.code == 0 and "nothing fits" in done.out and message in done.err, done.err
        quiet = run("search", hub, *flags, "--json")
        assert quiet.out.strip() == "[]" and message in quiet.err
    assert run("search", hub, "--metric", "accuracy>1").err == "", "a bound that nothing meets is no mistake"


def test_a_channel_that_is_not_there_is_told_those_that_are(run: Any, hub: Path) -> None:
    shown = run("rollback", "three", "lates", "--hub", hub).err
    assert "three has no channel 'lates'; expected: one of latest" in shown


def test_a_folder_that_is_no_package_is_told_the_nearest(
    run: Any, tiny_tasks: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = tiny_tasks.write("three", seed=1)
    wrong = written.parent / f"{written.name}x"
    assert f"such as {written}" in run("inspect", wrong).err
    assert f"to do: give --hub, or the package folder {written}" in run("ask", wrong, "a text").err
    assert "to do: give --hub" in run("ask", tmp_path / "far" / "away", "a text").err


def test_the_hub_is_an_argument_or_a_flag_of_every_verb(run: Any, hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEHUB_HUB", "elsewhere")
    listed = run("ls", hub).out
    assert "three@1.0.0" in listed and run("ls", "--hub", hub).out == listed
    assert run("ls", "--hub", hub, "three").out == run("ls", hub, "three").out
    assert run("search", "--hub", hub, "thr").out == run("search", hub, "thr").out != run("search", hub, "x").out
    assert run("gc", "--hub", hub).out == run("gc", hub).out
    for verb in (("ls", hub, "three"), ("gc", hub), ("search", hub, "x"), ("push", "package", hub)):
        assert "two hubs are named" in run(*verb, "--hub", "other").err
    monkeypatch.setenv("SPARSEHUB_HUB", str(hub))
    assert run("ls", "three").out == run("ls", hub, "three").out and run("search", "thr").out == run("search", hub).out
    assert "three@1.0.0" in run("ls", "--hub", hub, "three").out
    monkeypatch.chdir(hub.parent)
    assert run("ls", "hub").out == run("ls").out, "a folder that is there is the hub"
    monkeypatch.delenv("SPARSEHUB_HUB")
    assert "no hub is given; to do: name it, as an argument or by --hub, or set SPARSEHUB_HUB" in run("ls").err
