"""A setting is defined once: what the command line, the docs and the errors say comes from the definition."""

from __future__ import annotations

import importlib.util
import inspect
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from pydantic import Field
from pydantic.dataclasses import dataclass

from serving.settings import Settings
from sparsehub.cli.app import app
from sparsehub.cli.flags import with_flags
from sparsehub.errors import UsageError
from sparsehub.settings import (
    FROZEN,
    REQUIRED,
    Configuration,
    Fallback,
    Flag,
    Names,
    Naming,
    OneOf,
    PathText,
    errors_named,
    flag_of,
    settings_of,
    shown,
    split_names,
)
from sparsehub.training import TrainConfig
from sparsehub.training.stability_plan import Plan

VERBS = {"train": TrainConfig, "serve": Settings, "stability": Plan}
PAGE = Path(__file__).parents[1] / "docs" / "settings.md"


@dataclass(frozen=True, config=FROZEN)
class Tea(Configuration):
    """A small configuration, with a setting of every kind."""

    kind: Annotated[str, OneOf(("green", "black")), Field(description="What is in it.")]
    minutes: Annotated[float, Field(gt=0, description="How long.")] = 3.0
    cups: Annotated[int, Field(ge=1, le=8, description="How many.")] = 2
    shop: Annotated[PathText | None, Fallback("the corner", "or any"), Field(description="Where from.")] = None
    with_it: Annotated[Names, Flag(name="with", repeated=True), Field(description="What beside it.")] = ()
    iced: Annotated[bool, Field(description="Cold.")] = False


def test_a_definition_says_everything_that_a_flag_needs() -> None:
    kind, minutes, cups, shop, beside, iced = settings_of(Tea)
    assert (kind.default, kind.choices, kind.type) == (REQUIRED, ("green", "black"), str)
    assert [setting.range for setting in (minutes, cups, iced)] == ["above 0", "1 to 8", ""]
    assert [setting.type for setting in (minutes, cups, shop, beside, iced)] == [float, int, str, tuple, bool]
    assert [setting.default_text for setting in (kind, minutes, cups, shop)] == ["", "3", "2", "the corner, or any"]
    assert (beside.flag_name, cups.flag_name, beside.variable) == ("--with", "--cups", "SPARSEHUB_WITH_IT")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "blck"}, "unknown kind 'blck', did you mean 'black'?"),
        ({"minutes": 0}, "minutes must be above zero; found: 0"),
        ({"minutes": float("nan")}, "minutes is not finite; found: nan"),
        ({"cups": 9}, "cups is out of range; found: 9; expected: 1 to 8"),
        ({"cups": 1.5}, "cups has the wrong type; found: float 1.5; expected: int"),
        ({"cups": True}, "cups has the wrong type; found: bool True; expected: int"),
        ({"cups": "2"}, "cups has the wrong type; found: str '2'; expected: int"),
        ({"shop": 5}, "shop has the wrong type; found: int 5; expected: str"),
        ({"with_it": 5}, "with_it has the wrong type; found: int 5; expected: a text or a list of texts"),
        ({"with_it": ["milk", 5]}, r"with_it[1] has the wrong type; found: int 5; expected: str"),
        ({"cup": 2}, "Tea: unknown key 'cup', did you mean 'cups'?"),
        ({"cups": 10**400}, f"cups is out of range; found: {10**400}; expected: 1 to 8"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        Tea(**{"kind": "green", **values})
    assert str(caught.value) == message


def test_what_is_given_by_its_place_is_named_too() -> None:
    for values, message in (
        (("red",), "unknown kind 'red'"),
        (("green", "long"), "minutes has the wrong type"),
        (("green", 3.0, 2, None, (), False, 1), "Tea has 6 settings; to do: give them by their names"),
    ):
        with pytest.raises(UsageError, match=message):
            Tea(*values)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="kind is given twice"):
        Tea("green", kind="black")  # type: ignore[misc]


def test_what_lacks_is_said_all_at_once() -> None:
    with pytest.raises(UsageError, match=r"Tea lacks kind$"):
        Tea()  # type: ignore[call-arg]
    with errors_named(Naming("tea", lambda name: flag_of(Tea, name))), pytest.raises(UsageError) as caught:
        Tea()  # type: ignore[call-arg]
    assert str(caught.value) == "tea lacks kind; to do: give --kind"


def test_errors_name_a_setting_as_it_was_written() -> None:
    with errors_named(Naming("tea", lambda name: flag_of(Tea, name))):
        for values, start in (({"cups": 0}, "--cups is out of range"), ({"with_it": [1]}, "--with[0] has the wrong")):
            with pytest.raises(UsageError) as caught:
                Tea("green", **values)
            assert str(caught.value).startswith(start)
        with pytest.raises(UsageError, match="--kind: unknown kind 'red'"):
            Tea("red")
    assert shown("cups") == "cups", "nothing of it is left"


def test_one_text_is_one_name_and_a_path_is_a_text() -> None:
    tea = Tea("green", shop=Path("some") / "where", with_it="milk")
    assert (tea.shop, tea.with_it) == ("some/where", ("milk",))
    assert Tea("green", with_it=["milk", "sugar"]).with_it == ("milk", "sugar")
    assert split_names(Tea, {"with_it": " milk,, sugar ,", "kind": "a,b"}) == {
        "with_it": ("milk", "sugar"),
        "kind": "a,b",
    }


def test_a_verb_gets_what_was_given_and_no_defaults() -> None:
    got: list[Any] = []

    def brew(given: dict[str, Any], *, hot: Annotated[bool, typer.Option("--hot")] = False) -> None:
        got.append((given, hot))

    command = typer.Typer()
    command.command()(with_flags(Tea, required=True)(brew))
    run = typer.main.get_command(command)
    for arguments in (["--kind", "red"], ["--kind", "green", "--with", "a", "--with", "b,c", "--no-iced", "--hot"]):
        run.main(args=arguments, standalone_mode=False)
    assert got[0] == ({"kind": "red"}, False)
    assert got[1] == ({"kind": "green", "with_it": ["a", "b,c"], "iced": False}, True)
    with pytest.raises(Exception, match=r"Missing .*kind"):
        run.main(args=[], standalone_mode=False)


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_has_a_flag_for_every_setting_and_no_second_default(verb: str) -> None:
    root: Any = typer.main.get_command(app)
    command = root.commands[verb].make_context(verb, [], resilient_parsing=True).command
    flags = {option.name: option for option in command.params}
    for setting in settings_of(VERBS[verb]):
        option = flags[setting.name]
        assert setting.flag_name in option.opts
        assert option.default is None, "the definition alone knows it"
        assert setting.help.split("[")[0] in option.help and setting.default_text in option.help.replace("\\", "")
        assert all(choice in option.help for choice in setting.choices) and setting.range in option.help
        assert option.secondary_opts == ([f"--no-{setting.flag_name[2:]}"] if setting.type is bool else [])


@pytest.mark.parametrize("kind", VERBS.values())
def test_every_setting_has_a_help_of_one_sentence_or_two(kind: type[Configuration]) -> None:
    for setting in settings_of(kind):
        assert setting.help and setting.help[0].isupper() and len(setting.help) < 110, setting.name


def test_no_function_of_the_command_line_has_a_flag_for_each_setting() -> None:
    from sparsehub.cli import serve, stability, train

    for module in (serve, stability, train):
        functions = [found for _, found in inspect.getmembers(module, inspect.isfunction)]
        assert max(len(inspect.signature(function).parameters) for function in functions) <= 6


def test_the_page_of_settings_is_as_the_definitions_say() -> None:
    found = importlib.util.spec_from_file_location("settings_tables", PAGE.with_name("settings_tables.py"))
    assert found is not None and found.loader is not None
    tables = importlib.util.module_from_spec(found)
    found.loader.exec_module(tables)
    page = PAGE.read_text(encoding="utf-8")
    assert tables.rendered(page) == page, "run: python docs/settings_tables.py"
    for kind in (TrainConfig, Settings):
        assert all(f"`{setting.flag_name}`" in page for setting in settings_of(kind))


@pytest.mark.parametrize(
    ("arguments", "absent"), [("--help", "pydantic"), ("train --help", "torch"), ("serve --help", "fastapi")]
)
def test_help_needs_no_more_than_its_own_flags(arguments: str, absent: str) -> None:
    code = f"""
import sys
from sparsehub.cli import main
try:
    main({arguments.split()!r})
except SystemExit as end:
    print(end.code, {absent!r} in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 False"
