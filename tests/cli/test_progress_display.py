"""Progress: bars on a terminal, lines in a log file, nothing beside JSON."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from sparsehub.cli import output, progress_display
from sparsehub.progress import BYTES, Quiet, current_display, shown_by, work

CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@pytest.fixture
def screen() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def bars(screen: io.StringIO) -> Iterator[progress_display.Terminal]:
    terminal = progress_display.Terminal(Console(file=screen, force_terminal=True, width=100))
    with shown_by(terminal):
        yield terminal


def lines(screen: io.StringIO) -> list[str]:
    return [line for line in re.split(r"[\r\n]+", CONTROL.sub("", screen.getvalue())) if line.strip()]


def test_without_a_display_nothing_is_shown(capfd: pytest.CaptureFixture[str]) -> None:
    with work("reading", 3, "rows") as advance:
        advance(3)
    assert current_display() is None and capfd.readouterr() == ("", "")


def test_a_terminal_shows_how_much_is_done(bars: progress_display.Terminal, screen: io.StringIO) -> None:
    with work("hashing [x]", 2048, BYTES) as advance:
        advance(2048)
    assert any("hashing [x]" in line and "2.0/2.0 KiB" in line for line in lines(screen))
    with work("loading"):
        pass
    assert any("loading" in line and "0 s" in line for line in lines(screen))


def test_two_bars_never_share_a_line(bars: progress_display.Terminal, screen: io.StringIO) -> None:
    with work("outer", 2, "tensors") as outer:
        outer(1)
        with work("inner", 4, "rows") as inner:
            inner(4)
            bars._bars.refresh()
        outer(1)
    assert not [line for line in lines(screen) if "outer" in line and "inner" in line]
    assert any("inner" in line and "4 of 4 rows" in line for line in lines(screen))
    assert any("outer" in line and "2 of 2 tensors" in line for line in lines(screen))


def test_bars_are_gone_after_an_error(bars: progress_display.Terminal, screen: io.StringIO) -> None:
    with pytest.raises(ZeroDivisionError), work("breaking", 1, "rows"):
        raise ZeroDivisionError
    assert not bars._bars.live.is_started and not bars._bars.tasks


def test_a_log_file_hears_of_what_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(progress_display, "progress", said.append)
    with shown_by(progress_display.ProgressLines()):
        monkeypatch.setattr(progress_display, "AFTER", 600.0)
        with work("quick", 5, "rows") as advance:
            advance(5)
        assert said == []
        monkeypatch.setattr(progress_display, "AFTER", 0.0)
        monkeypatch.setattr(progress_display, "EVERY", 0.0)
        with work("slow", 4 << 20, BYTES) as advance:
            advance(1 << 20)
    assert "slow: 1.0 MiB of 4.0 MiB" in said
    assert re.fullmatch(r"slow: \d+\.\d s", said[-1])


@pytest.mark.parametrize(("arguments", "terminal", "kind"), [
    (["verify", "x"], False, progress_display.ProgressLines),
    (["verify", "x"], True, progress_display.Terminal),
    (["verify", "x", "--json"], True, Quiet),
    (["verify", "x", "--json"], False, Quiet),
])  # fmt: skip
def test_what_shows_progress_is_what_fits(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], terminal: bool, kind: type
) -> None:
    monkeypatch.setattr(progress_display, "errors", Console(file=io.StringIO(), force_terminal=terminal))
    with progress_display.showing_progress(arguments):
        assert isinstance(current_display(), kind)
    assert current_display() is None


@pytest.mark.parametrize(
    "verb",
    ["verify", "materialize", "merge", "diff", "extract", "compare", "inspect", "ask", "ls", "gc", "evaluate"],
)
def test_what_takes_long_says_so_in_a_log_file(
    run: Any, tiny_tasks: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    one, two = (tiny_tasks.write(name, seed=seed) for name, seed in (("one", 1), ("two", 2)))
    base, hub = ("--backbone", tiny_tasks.folder), tmp_path / "hub"
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"text": "the fox {i}", "label": "label{i % 3}"}}\n' for i in range(9)))
    if verb == "extract":
        assert run("materialize", one, *base, "--out", tmp_path / "tuned").code == 0
    if verb in ("ls", "gc"):
        assert run("push", one, hub).code == 0
    monkeypatch.setenv("SPARSEHUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(progress_display, "AFTER", 0.0)
    arguments, expected = {
        "verify": ((one, *base), ("checking one@", "hashing model.safetensors", "loading ")),
        "materialize": ((one, *base, "--out", tmp_path / "out"), ("loading ", "writing out")),
        "merge": ((one, two, "--out", tmp_path / "out", "--name", "both"), ("merging 2 packages", "finishing both@")),
        "diff": ((one, two), ("comparing two packages",)),
        "extract": (
            (tmp_path / "tuned", *base, "--out", tmp_path / "out", "--name", "x", "--nnz", 50, "--task-of", one),
            ("choosing 50 entries", "collecting what was chosen", "loading "),
        ),
        "compare": ((one, two), ("comparing 2 packages",)),
        "inspect": ((one,), ("checking one@", "counting the changes")),
        "ask": ((one, "--input", rows, "--jsonl", *base), ("loading ", "asking")),
        "ls": ((hub,), ("listing the hub",)),
        "gc": ((hub, "--delete"), ("looking for what nothing needs", "removing")),
        "evaluate": (
            (one, *base, "--test", rows, "--probe", rows),
            ("reading rows.jsonl", "measuring", "frozen features", "fitting the probe"),
        ),
    }[verb]
    done = run(verb, *arguments)
    assert done.code == 0, done.err
    for what in expected:
        assert re.search(rf"^{re.escape(what)}.*: \d+\.\d s$", done.err, flags=re.MULTILINE), done.err
    if verb == "diff":
        assert run(verb, *arguments, "--json").err == ""


def test_a_line_goes_above_a_bar_of_tqdm_only_while_there_is_one(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import tqdm.auto

    monkeypatch.setattr(output.errors, "_width", 100)
    tqdm.auto.tqdm(total=1, disable=True).close()
    output.progress("a line")
    assert capfd.readouterr().err == "a line\n"
