"""What holds for every verb: help, versions, exit codes, errors on one line."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

import sparsehub.cli.app
from sparsehub import __version__
from sparsehub.errors import UsageError
from sparsehub.package.manifest import MANIFEST_FILE

VERBS = [
    *(
        "train",
        "stability",
        "extract",
        "merge",
        "diff",
        "export",
        "inspect",
        "verify",
        "push",
        "pull",
        "ls",
        "search",
        "show",
    ),
    *("tag", "rollback", "lock", "sign", "copy", "gc", "compare", "materialize", "serve", "demo"),
]
HEAVY = ("torch", "transformers", "datasets", "bentoml", "fastapi", "obstore", "numpy")


def one_error(done: Any) -> str:
    """The single line of a failed command's standard error."""
    assert done.code == 2
    assert done.out == ""
    lines = done.err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), done.err
    return lines[0]


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], [], ["train", "--help"], ["serve", "--help"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = f"""
import sys
from sparsehub.cli import main
try:
    main({arguments!r})
except SystemExit as end:
    loaded = [name for name in {HEAVY!r} if name in sys.modules]
    print("loaded:", loaded, end.code)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "loaded: [] 0"
    assert done.stderr == ""


def test_help_names_every_verb_and_every_verb_has_help(run: Any) -> None:
    shown = run("--help").out
    for verb in VERBS:
        assert f" {verb} " in shown
        done = run(verb, "--help")
        assert done.code == 0 and f"sparsehub {verb}" in done.out and done.err == ""


def test_no_arguments_show_the_help(run: Any) -> None:
    assert (run().code, run().out) == (0, run("--help").out)


def test_version(run: Any) -> None:
    assert run("--version").out.strip() == f"sparsehub {__version__}"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--nonsense"],
        ["nonsense"],
        ["ls", "--nonsense"],
        ["ls"],
        ["show", "a"],
        ["serve", "--backbone", "b", "--port", "x"],
    ],
)
def test_wrong_usage_is_one_line(run: Any, arguments: list[str]) -> None:
    one_error(run(*arguments))


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["serve", "--bakcbone", "x"], "serve: unknown flag '--bakcbone', did you mean '--backbone'?"),
        (["serve", "--no-consol"], "serve: unknown flag '--no-consol', did you mean '--no-console'?"),
        (["train", "--lables", "x"], "train: unknown flag '--lables', did you mean '--labels'?"),
        (["keys", "add", "--rol", "admin"], "keys add: unknown flag '--rol', did you mean '--role'?"),
        (["--verzion"], "unknown flag '--verzion', did you mean '--version'?"),
        (["ls", "-z"], "ls: unknown flag '-z'; to do: see sparsehub ls --help"),
        (["serv"], "no such command 'serv'. Did you mean 'serve', 'search'?"),
        (["keys", "ad"], "keys: no such command 'ad'. Did you mean 'add'?"),
        (["serve"], "serve: missing option '--backbone'; to do: see sparsehub serve --help"),
        (["inspect", "a", "b"], "inspect: got unexpected extra argument(s) (b); to do: see sparsehub inspect --help"),
        (["serve", "--backbone"], "option '--backbone' requires an argument"),
    ],
)
def test_a_wrong_flag_or_verb_is_one_line_that_names_the_right_one(run: Any, arguments: list[str], line: str) -> None:
    assert one_error(run(*arguments)).removeprefix("error: ") == line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspect", "nowhere"], "nowhere is not a package"),
        (["verify", "nowhere"], "nowhere is not a package"),
        (["push", "nowhere", "hub"], "nowhere is not a package"),
        (["ls", "nowhere"], "nowhere"),
        (["pull", "trec", "--hub", "nowhere", "--out", "out"], "nowhere"),
        (["pull", "TREC!", "--hub", "nowhere", "--out", "out"], "not a task reference"),
        (["push", "nowhere", "ftp://bucket"], "packages cannot live there"),
        (["push", "nowhere", "hub", "--private"], "only the Hugging Face Hub knows private tasks"),
        (["pull"], "nothing to fetch"),
        (["pull", "trec"], "nothing to fetch"),
        (["pull", "a", "b", "--hub", "hub", "--out", "out"], "--out is one folder"),
        (["pull", "--lock", "sparsehub.lock"], "there is no lock file"),
        (["lock"], "there is no lock file"),
        (["lock", "trec"], "no hub is given"),
        (["show", "trec", "--hub", "nowhere"], "nowhere"),
        (["tag", "trec@1.0", "stable", "--hub", "nowhere"], "nowhere"),
        (["rollback", "trec@1.0", "stable", "--hub", "nowhere"], "a task is named here"),
        (["search", "nowhere", "--metric", "accuracy"], "not a condition on a metric"),
        (["sign", "nowhere"], "sign with a key or through sigstore"),
        (["sign", "nowhere", "--key", "k.pem"], "nowhere is not a package"),
        (["gc", "hub", "--keep-bytes", "5"], "--keep-bytes is for the cache"),
        (["copy", "trec", "--from", "nowhere", "--to", "hub"], "nowhere"),
        (["compare", "nowhere"], "one package alone"),
        (["verify", "nowhere", "--key", "a", "--certificate", "b"], "three policies"),
        (["verify", "nowhere", "--key", "a"], "trusts a file that is not there"),
        (["materialize", "trec", "--backbone", "b", "--out", "out"], "no package folder, and no hub is given"),
        (["serve", "--backbone", "./b"], "--backbone: there is no backbone folder ./b"),
        (["train", "--backbone", "b"], ""),
        (["extract", "./tuned", "--backbone", "./base", "--out", "out", "--name", "n"], "there is no backbone folder"),
        (["merge", "a", "b", "--out", "out", "--name", "n"], "no package folder, and no hub is given"),
        (["diff", "a", "b"], "no package folder, and no hub is given"),
        (["diff", "a", "b", "--out", "out"], "give --out and --name"),
        (["export", "a", "--backbone", "b", "--out", "out", "--to", "lora"], "unknown format 'lora'"),
    ],
)
def test_what_a_user_can_cause_is_one_line(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in one_error(run(*arguments))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", [0, 1])
def test_debug_shows_the_traceback_wherever_it_stands(run: Any, place: int) -> None:
    arguments = ["inspect", "nowhere"]
    arguments.insert(place * 2, "--debug")
    done = run(*arguments)
    assert done.code == 2
    assert "Traceback" in done.err and "ManifestError" in done.err
    assert done.err.splitlines()[-1].startswith("error: nowhere is not a package")


def test_what_nobody_expected_is_one_line_too(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("division by [red]zero")

    monkeypatch.setattr("sparsehub.hub.open_hub", broken)
    line = one_error(run("ls", "hub"))
    assert "unexpected ZeroDivisionError: division by [red]zero" in line and "--debug" in line
    assert "Traceback" in run("ls", "hub", "--debug").err


def test_an_error_message_of_many_lines_is_told_in_one(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise UsageError("first\nsecond\n\n  third")

    monkeypatch.setattr("sparsehub.hub.open_hub", broken)
    assert one_error(run("ls", "hub")) == "error: first second third"


def test_an_interrupted_command_is_130(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sparsehub.hub.open_hub", interrupted)
    done = run("ls", "hub")
    assert (done.code, done.out, done.err.strip()) == (130, "", "interrupted")


def test_serve_starts_bentoml_with_these_settings_and_no_others(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []
    monkeypatch.setattr("os.execve", lambda *arguments: started.append(arguments))
    monkeypatch.setenv("SPARSEHUB_QUEUE_ROWS", "5")
    monkeypatch.setenv("SPARSEHUB_CACHE", "/cache")
    monkeypatch.setenv("SPARSEHUB_POLICY", "policy.yaml")
    monkeypatch.setattr("serving.preflight.check_settings", lambda settings: None)
    done = run("serve", "--backbone", "b", "--task", "x", "--task", "y@1", "--batch-rows", "3", "--port", "81")
    assert (done.code, done.err) == (0, "")
    ((_, command, environment),) = started
    assert command[1:] == ["-m", "bentoml", "serve", sparsehub.cli.serve.SERVICE, "--host", "127.0.0.1", "--port", "81"]
    own = {key: value for key, value in environment.items() if key.startswith("SPARSEHUB_")}
    assert own["SPARSEHUB_TASKS"] == "x,y@1" and own["SPARSEHUB_BATCH_ROWS"] == "3"
    assert own["SPARSEHUB_QUEUE_ROWS"] == "4096" and own["SPARSEHUB_CACHE"] == "/cache"
    assert own["SPARSEHUB_POLICY"] == "policy.yaml", "whom to trust is no setting that a command forgets"


@pytest.mark.parametrize(
    ("flags", "hub"),
    [
        ((), "from-the-variable"),
        (("--task", "x"), "from-the-variable"),
        (("--task", "folder"), None),
        (("--task", "folder", "--task", "x"), "from-the-variable"),
        (("--catalog", "file.json"), "from-the-variable"),
        (("--catalog", "other#production"), None),
        (("--catalog", "other#production", "--hub", "h"), "h"),
    ],
)
def test_serve_fetches_from_the_hub_of_the_variable_where_nothing_says_another(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...], hub: str | None
) -> None:
    started: list[Any] = []
    monkeypatch.setattr("os.execve", lambda *arguments: started.append(arguments[2]))
    monkeypatch.setattr("serving.preflight.check_settings", lambda settings: None)
    monkeypatch.setenv("SPARSEHUB_HUB", "from-the-variable")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / MANIFEST_FILE).write_text("{}")
    assert run("serve", "--backbone", "b", *flags).code == 0
    assert [environment.get("SPARSEHUB_HUB") for environment in started] == [hub]


def test_every_verb_with_a_hub_says_that_the_variable_stands_for_it(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    group: Any = typer.main.get_command(sparsehub.cli.app.app)
    paths = [[name] for name in group.commands] + [["catalog", name] for name in group.commands["catalog"].commands]
    helps = {" ".join(path): run(*path, "--help").out for path in paths}
    with_hub = {verb for verb, text in helps.items() if re.search(r"--hub\b", text)}
    assert {"serve", "lock", "pull", "sign", "catalog add", "catalog set", "catalog canary", "ask"} <= with_hub
    assert [verb for verb in sorted(with_hub) if "SPARSEHUB_HUB" not in helps[verb]] == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--task", "x"), "--task: 'x' is no package folder, and no hub is given; to do: give --hub"),
        (("--hub", "h", "--queue-rows", "0"), "--queue-rows is out of range; found: 0; expected: at least 1"),
        (("--hub", "h", "--mode", "fast"), "--mode: unknown mode 'fast'"),
        (("--hub", "h", "--timeout", "0"), "--timeout must be above zero"),
        (("--hub", "h", "--open", "--keys", "k"), "to do: leave out --open, or --keys"),
    ],
)
def test_an_error_of_serve_names_the_flag(run: Any, flags: tuple[str, ...], message: str) -> None:
    assert message in one_error(run("serve", "--backbone", "b", *flags))


def test_serving_the_network_needs_keys_or_a_word(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []
    monkeypatch.setattr("os.execve", lambda *arguments: started.append(arguments[2]))
    monkeypatch.setattr("serving.preflight.check_settings", lambda settings: None)
    serve = ("serve", "--backbone", "b", "--task", "x", "--host", "0.0.0.0")
    done = run(*serve)
    assert done.code == 2 and "0.0.0.0 is open to the network" in done.err and "--keys FILE" in done.err
    assert run(*serve, "--keys", "keys.json").code == 0
    assert run(*serve, "--open").code == 0
    assert run(*serve, "--open", "--keys", "keys.json").code == 2
    assert [environment.get("SPARSEHUB_KEYS") for environment in started] == ["keys.json", None]
    assert [environment["SPARSEHUB_OPEN"] for environment in started] == ["False", "True"]


def test_a_reader_that_has_read_enough_sees_no_traceback() -> None:
    code = "from sparsehub.cli import main; main(['train', '--help'])"
    writer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert writer.stdout is not None and writer.stderr is not None
    writer.stdout.close()
    assert writer.stderr.read() == b""
    writer.wait(60)


def test_as_a_real_process(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sparsehub", "verify", str(tmp_path / "nowhere")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith("error: ")
    listed = subprocess.run([*command[:3], "ls", "nowhere", "--json"], capture_output=True, text=True, check=False)
    assert listed.returncode == 2 and not listed.stdout


def test_ls_of_an_empty_hub_is_an_empty_list(run: Any, tmp_path: Path) -> None:
    (tmp_path / "hub").mkdir()
    assert json.loads(run("ls", tmp_path / "hub", "--json").out) == []
    assert "holds no tasks yet" in run("ls", tmp_path / "hub").out


@pytest.mark.parametrize("arguments", [["inspect", "~/made"], ["inspect", "--html=~/page.html", "~/made"]])
def test_a_tilde_that_no_shell_replaced_is_home(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(SystemExit):
        sparsehub.cli.app.main(arguments)
    assert f"{tmp_path}/made" in capsys.readouterr().err.replace("\n", "")
