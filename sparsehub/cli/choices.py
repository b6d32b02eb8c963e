"""Options whose value is one of a few names: help shows them, a shell completes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import typer

from sparsehub.errors import UsageError
from sparsehub.schema import unknown_name

SHOWN = 32  # characters of names that stand where the value does; longer lists stand in the help


def one_of(names: Sequence[str], text: str, panel: str | None = None, what: str | None = None) -> Any:
    """The option of typer for a value that is one of `names`; another is refused before anything is done.

    text: its help. what: what an error calls the value, where that is not the option's own name.
    """
    shown = "|".join(names)
    short = len(shown) <= SHOWN
    return typer.Option(
        help=text if short else f"{text} One of {', '.join(names)}.",
        metavar=shown if short else None,
        autocompletion=completion(names),
        rich_help_panel=panel,
        callback=_checked(names, what),
    )


def _checked(names: Sequence[str], what: str | None) -> Callable[[typer.CallbackParam, str | None], str | None]:
    def check(parameter: typer.CallbackParam, value: str | None) -> str | None:
        if value is not None and value not in names:
            called = what or str(parameter.name).replace("_", " ")
            raise UsageError(f"{parameter.opts[0]}: {unknown_name(called, value, list(names))}")
        return value

    return check


def completion(names: Sequence[str]) -> Callable[[str], list[str]]:
    """What a shell asks for the rest of a name that has begun."""

    def complete(incomplete: str) -> list[str]:
        return [name for name in names if name.startswith(incomplete)]

    return complete
