"""Flags made of settings: how `sparsehub train` and `sparsehub serve` come to have one for each."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from sparsehub.cli.choices import completion
from sparsehub.errors import UsageError
from sparsehub.settings import REQUIRED, Configuration, Setting, settings_of


def with_flags(
    kind: type[Configuration], *, required: bool = False
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A verb whose first parameter is a dict of settings becomes one with a flag for every setting of `kind`.

    The dict holds what was given on the command line, by the settings' names: defaults stay where they are defined.
    required: whether the command line must give the settings that have no default, since nothing else can.
    """

    def decorate(verb: Callable[..., None]) -> Callable[..., None]:
        settings, signature = settings_of(kind), inspect.signature(verb, eval_str=True)
        flags = [_parameter(setting, required and setting.default is REQUIRED) for setting in settings]

        @functools.wraps(verb)
        def command(**arguments: Any) -> None:
            given = {setting.name: arguments.pop(setting.name) for setting in settings}
            verb({name: value for name, value in given.items() if value is not None}, **arguments)

        own = list(signature.parameters.values())[1:]
        command.__signature__ = signature.replace(parameters=[*own, *flags])  # type: ignore[attr-defined]
        return command

    return decorate


def _parameter(setting: Setting, required: bool) -> inspect.Parameter:
    flag = setting.flag_name
    option = typer.Option(
        f"{flag}/--no-{flag[2:]}" if setting.type is bool else flag,
        help=_help(setting, marked=required),
        metavar=setting.flag.metavar or ("NAME" if setting.choices else None),
        autocompletion=completion(setting.choices) if setting.choices else None,
        rich_help_panel=setting.flag.panel,
        envvar=setting.variable if setting.flag.inherited else None,
    )
    kind: Any = setting.type if setting.type in (int, float, bool) else list[str] if setting.flag.repeated else str
    annotation: Any = Annotated[kind if required else kind | None, option]  # type: ignore[valid-type]
    default = inspect.Parameter.empty if required else None
    return inspect.Parameter(setting.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _help(setting: Setting, marked: bool) -> str:
    """The setting's help with what it may be and what it is where nobody says. marked: the flag says itself that it is
    required."""
    default = f"default: {setting.default_text}" if setting.default_text else ""
    choices = f"one of {', '.join(setting.choices)}" if setting.choices else ""
    needed = "required" if setting.default is REQUIRED and not marked else ""
    notes = [note for note in (needed, choices, setting.range, default) if note]
    return f"{setting.help} [{'; '.join(notes)}]" if notes else setting.help


def name_values(given: Sequence[str], problem: str, example: str) -> dict[str, str]:
    """`name=value` of a flag that may be repeated; raises `UsageError` for anything else."""
    for text in given:
        if "=" not in text:
            raise UsageError(problem, found=text, expected=f"for example {example}")
    return dict(text.split("=", 1) for text in given)
