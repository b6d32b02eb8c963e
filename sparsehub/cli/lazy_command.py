"""Commands whose flags are made when they are called, so that `sparsehub --help` imports no pydantic."""

from __future__ import annotations

from typing import Any

import typer

from sparsehub.cli.help_page import Verb


class LazyCommand(Verb):
    """A command that is registered with a function without parameters, which returns the real one when called."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        assert self.callback is not None
        app = typer.Typer(add_completion=False)
        app.command(self.name, cls=Verb, help=self.help)(self.callback())
        return typer.main.get_command(app).make_context(info_name, args, parent, **extra)
