"""Options whose value is one of a few names: help shows them, a shell completes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import typer

SHOWN = 48  # characters of names that stand where the value does; longer lists stand in the help


def one_of(names: Sequence[str], text: str, panel: str | None = None) -> Any:
    """The option of typer for a value that is one of `names`. text: its help."""
    return typer.Option(help=text, metavar=metavar(names), autocompletion=completion(names), rich_help_panel=panel)


def metavar(names: Sequence[str]) -> str | None:
    """The names as they stand in the place of the value; None where they are too many for that."""
    shown = "|".join(names)
    return shown if names and len(shown) <= SHOWN else None


def completion(names: Sequence[str]) -> Callable[[str], list[str]]:
    """What a shell asks for the rest of a name that has begun."""

    def complete(incomplete: str) -> list[str]:
        return [name for name in names if name.startswith(incomplete)]

    return complete
