"""Help of every verb, whole at 80 columns: a flag and its value, and beside them what it does.

Typer's own has six columns, of which 80 characters leave each a word and cut the longest flags.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text
from typer.core import TyperArgument, TyperCommand, TyperGroup

WIDEST = 100  # columns: longer lines are hard to read
_LABEL = 26  # columns of a flag with its value; what is longer has a line of its own
_VALUES = {"<str": "TEXT", "<int": "N", "<float": "NUMBER", "<path": "PATH", "<list[str": "TEXT", "<list[path": "PATH"}

Row = tuple[str, str]  # a flag with its value, an argument or a verb; what it does


class Verb(TyperCommand):
    """A command of the command line, with help of ours."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        formatter.write(_page(self, ctx))


class VerbGroup(TyperGroup):
    """A command that has verbs of its own, with help of ours."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        formatter.write(_page(self, ctx))


def _page(command: TyperCommand | TyperGroup, context: Any) -> str:
    console = Console(highlight=False)
    console.width = min(console.width, WIDEST)
    with console.capture() as page:
        _print_text(console, Text(f"Usage: {context.command_path} {_usage(command, context)}", "bold"))
        for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
            console.print()
            _print_text(console, Text(" ".join(paragraph.split())))
        for title, rows in _sections(command, context).items():
            _print_section(console, title, rows)
    return page.get().rstrip("\n")


def _usage(command: TyperCommand | TyperGroup, context: Any) -> str:
    """What may follow the verb: `[OPTIONS] TASKS [TEXTS...]`."""
    found = ["[OPTIONS]"]
    for parameter in command.get_params(context):
        if isinstance(parameter, TyperArgument):
            name = _label(parameter, "")
            found.append(name if parameter.required else f"[{name}]")
    return " ".join([*found, *(["COMMAND [ARGS...]"] if isinstance(command, TyperGroup) else [])])


def _print_text(console: Console, text: Text) -> None:
    for line in text.wrap(console, console.width):
        line.rstrip()
        console.print(line)


def _sections(command: TyperCommand | TyperGroup, context: Any) -> dict[str, list[Row]]:
    """What stands under each heading: arguments, flags, groups of flags, verbs."""
    found: dict[str, list[Row]] = {"Arguments": [], "Options": []}
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None:
            usual = "Arguments" if isinstance(parameter, TyperArgument) else "Options"
            panel = getattr(parameter, "rich_help_panel", None) or usual
            found.setdefault(panel, []).append((_label(parameter, record[0]), record[1]))
    for name, verb in _verbs(command, context):
        panel = getattr(verb, "rich_help_panel", None)
        text = inspect.cleandoc(verb.help or "").split("\n\n")[0]
        found.setdefault(panel if isinstance(panel, str) else "Commands", []).append((name, text))
    return {title: rows for title, rows in found.items() if rows}


def _verbs(command: TyperCommand | TyperGroup, context: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(command, TyperGroup):
        for name in command.list_commands(context):
            yield name, command.get_command(context, name)


def _label(parameter: Any, shown: str) -> str:
    """A flag with its value, or an argument. shown: what typer would write there."""
    if isinstance(parameter, TyperArgument):
        return str(parameter.name).upper() + "..." * (parameter.nargs != 1)
    kinds = (parameter.opts, parameter.secondary_opts)
    names = " / ".join(", ".join(sorted(names, key=len)) for names in kinds if names)
    return names if parameter.is_flag else f"{names} {_value(shown.rpartition(parameter.opts[-1])[2].strip())}"


def _value(shown: str) -> str:
    """What stands for a value: the option's own word for it, or one for its type."""
    return next((word for kind, word in _VALUES.items() if shown.startswith(kind)), shown)


def _print_section(console: Console, title: str, rows: list[Row]) -> None:
    console.print("\n", Text(title, "bold"), sep="")
    width = min(_LABEL, max(cell_len(label) for label, _ in rows))
    for label, help_text in rows:
        text = Text(" ".join(help_text.split()))
        text.highlight_regex(r"\[[^\[]*\]$", "dim")
        text.highlight_regex(r"\brequired(?=[;\]])", "bold not dim")
        lines = list(text.wrap(console, console.width - width - 4)) or [Text()]
        if cell_len(label) > width:
            lines.insert(0, Text())
        for number, line in enumerate(lines):
            start = f"  {'' if number else label}".ljust(width + 4)
            whole = Text.assemble((start, "cyan"), line)
            whole.rstrip()
            console.print(whole, no_wrap=True, overflow="ignore", crop=False)
