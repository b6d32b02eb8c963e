"""What the command line says to a mistake in its flags and arguments: one line, as for every other mistake."""

from __future__ import annotations

import difflib
from typing import Any

import typer

from sparsehub.errors import UsageError
from sparsehub.schema import unknown_name


def usage_error(error: typer.exceptions.TyperException) -> UsageError:
    """Typer's exception as one of ours, which names the verb and the nearest flag, or where its flags are listed."""
    context: Any = getattr(error, "ctx", None)
    verb = context.command_path.partition(" ")[2] if context else ""
    where = f"{verb}: " if verb else ""
    help_of = f"see {context.command_path} --help" if context else None
    if context is None or not hasattr(error, "possibilities"):
        message = error.format_message().rstrip(".")
        fix = None if message.endswith("?") else help_of  # it names what was meant
        return UsageError(f"{where}{message[:1].lower()}{message[1:]}", fix=fix)
    option, known = str(getattr(error, "option_name", "")), _flags(context)
    if difflib.get_close_matches(option, known, n=1):
        return UsageError(where + unknown_name("flag", option, known))
    return UsageError(f"{where}unknown flag {option!r}", fix=help_of)


def _flags(context: Any) -> list[str]:
    """Every flag of the verb, with those that turn a switch off."""
    parameters = context.command.get_params(context)
    names = [name for one in parameters for name in (*one.opts, *one.secondary_opts)]
    return [name for name in names if name.startswith("-")]
