"""Options whose value is one of a few names: help shows them, a shell completes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import typer

SHOWN = 32  # characters of names that stand where the value does; longer lists stand in the help


def one_of(names: Sequence[str], text: str, panel: str | None = None) -> Any:
    """The option of typer for a value that is one of `names`. text: its help."""
    shown = "|".join(names)
    short = len(shown) <= SHOWN
    return typer.Option(
        help=text if short else f"{text} One of {', '.join(names)}.",
        metavar=shown if short else None,
        autocompletion=completion(names),
        rich_help_panel=panel,
    )


def completion(names: Sequence[str]) -> Callable[[str], list[str]]:
    """What a shell asks for the rest of a name that has begun."""

    def complete(incomplete: str) -> list[str]:
        return [name for name in names if name.startswith(incomplete)]

    return complete
