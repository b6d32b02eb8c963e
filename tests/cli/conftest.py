"""The command line in this process, and packages for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from sparsehub.cli import main


@dataclass(frozen=True)
class Done:
    """What a command left: its exit code and what it wrote."""

    code: int
    out: str
    err: str


Run = Callable[..., Done]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """run("ls", "hub"): a command in this process."""
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    monkeypatch.setattr(
        "sparsehub.cli.progress_display.AFTER", 600.0
    )  # a loaded machine is no reason for lines of progress

    def command(*arguments: object) -> Done:
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main([str(argument) for argument in arguments])
        written = capsys.readouterr()
        return Done(int(caught.value.code or 0), written.out, written.err)

    return command
