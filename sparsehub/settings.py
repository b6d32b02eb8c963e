"""What a setting is: a field of a frozen pydantic dataclass, the only place where it is defined.

The fields of `TrainConfig` and of serving's `Settings` say name, type, default, range and help. Flags, YAML keys,
environment variables, error messages and the tables of docs/settings.md are made of them.
"""

from __future__ import annotations

import dataclasses
import os
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self, TypeVar

from annotated_types import Ge, Gt, Le, Lt
from pydantic import AfterValidator, BeforeValidator, ConfigDict, GetCoreSchemaHandler, ValidationError, model_validator
from pydantic.dataclasses import dataclass
from pydantic_core import CoreSchema, ErrorDetails, PydanticCustomError, core_schema

from sparsehub.errors import UsageError
from sparsehub.files import at_home
from sparsehub.schema import unknown_name

PREFIX = "SPARSEHUB_"  # of environment variables
OF_MACHINE = ("SPARSEHUB_CACHE", "SPARSEHUB_CPU")  # what such variables say of a machine: no setting of any command
FROZEN = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
REQUIRED: Any = dataclasses.MISSING  # the default of a setting that has none


@dataclasses.dataclass(frozen=True)
class Flag:
    """How the command line shows a setting."""

    name: str = ""  # where it is another than the setting's
    panel: str | None = None  # the heading of the help under which it stands
    metavar: str | None = None
    repeated: bool = False  # one item each time, rather than all of them between commas
    inherited: bool = False  # `sparsehub serve` takes the variable where the flag is not given


@dataclasses.dataclass(frozen=True)
class Fallback:
    """What holds where a setting is None: for help and docs, and for the code that fills it in."""

    value: Any
    note: str = ""


@dataclasses.dataclass(frozen=True)
class OneOf:
    """The names that a text may be; any other is an error that names the nearest of them."""

    names: tuple[str, ...]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def _check(self, value: str | None) -> str | None:
        if value is not None and value not in self.names:
            raise PydanticCustomError("one_of", "unknown name")
        return value


def wrong_type(expected: str) -> PydanticCustomError:
    """For validators of own types: the error that says what was expected."""
    return PydanticCustomError("wrong_type", "wrong type", {"expected": expected})


def _path_text(value: Any) -> Any:
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    return at_home(text) if isinstance(text, str) else text


def _at_home(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(map(at_home, names))


AtHome = AfterValidator(_at_home)
"""Of a setting whose names may be paths."""


def _names(value: Any) -> Any:
    """One text is one name."""
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list | tuple):
        raise wrong_type("a text or a list of texts")
    return tuple(value)


if TYPE_CHECKING:  # what may be given; what is kept is a `str`, and a tuple of them
    PathText = str | Path
    LocationText = str
    Names = str | Sequence[str]
else:
    PathText = LocationText = Annotated[str, BeforeValidator(_path_text)]
    Names = Annotated[tuple[str, ...], BeforeValidator(_names)]


@dataclasses.dataclass(frozen=True)
class Setting:
    """One field of a configuration, for whoever makes flags, variables, messages or tables of it."""

    name: str
    type: type  # str, int, float, bool; tuple for names, dict for a method's options
    default: Any  # REQUIRED where there is none
    help: str
    flag: Flag
    fallback: Fallback | None
    choices: tuple[str, ...]
    range: str  # "0 to 1", "at least 1"; empty where every value is allowed

    @property
    def flag_name(self) -> str:
        return f"--{self.flag.name or self.name.replace('_', '-')}"

    @property
    def variable(self) -> str:
        return PREFIX + self.name.upper()

    @property
    def default_text(self) -> str:
        """The default for people; empty where there is none."""
        if self.fallback is not None:
            return f"{self.fallback.value}{', ' * bool(self.fallback.note)}{self.fallback.note}"
        if self.default is False or self.default in (REQUIRED, None, "", ()):
            return ""
        return f"{self.default:g}" if isinstance(self.default, float) else str(self.default)


@dataclass(frozen=True, config=FROZEN)
class Configuration:
    """The base of frozen settings. Making one raises `UsageError`, which names the setting as the user wrote it."""

    @model_validator(mode="wrap")
    @classmethod
    def _raise_usage_errors(cls, values: Any, build: Callable[[Any], Self]) -> Self:
        try:
            built = build(values)
        except ValidationError as error:
            raise _usage_error(cls, error.errors(include_url=False)) from None
        _refuse_empty(cls, built)
        return built


def _refuse_empty(kind: type[Configuration], built: Configuration) -> None:
    """An empty text is a variable of a shell that was not set; it never means that nothing was said."""
    for setting in settings_of(kind):
        value = getattr(built, setting.name)
        if setting.type is str and setting.default != "" and isinstance(value, str) and not value:
            fix = "give it a value" if setting.default is REQUIRED else "give it a value, or leave it out"
            raise UsageError(f"{shown(setting.name)} is empty", fix=fix)


C = TypeVar("C", bound=Configuration)


def settings_of(kind: type[Any]) -> tuple[Setting, ...]:
    """All settings of a `Configuration`, in the order of its fields."""
    return tuple(_setting(name, field) for name, field in kind.__pydantic_fields__.items())


def _setting(name: str, field: Any) -> Setting:
    def one(kind: type) -> Any:
        return next((item for item in field.metadata if isinstance(item, kind)), None)

    default = REQUIRED if field.is_required() else field.default if field.default_factory is None else None
    choices = one(OneOf).names if one(OneOf) else ()
    plain, about = _plain(field.annotation), field.description or ""
    bounds = _range(one(Ge), one(Gt), one(Le), one(Lt))
    return Setting(name, plain, default, about, one(Flag) or Flag(), one(Fallback), choices, bounds)


def _plain(hint: Any) -> type:
    """`float` of `Annotated[float, ...] | None`; `str` where anything may be given from Python."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _plain(arguments[0])
    if origin in (typing.Union, types.UnionType):
        return _plain(next(argument for argument in arguments if argument is not type(None)))
    return str if hint is Any else origin or hint


def _range(least: Ge | None, above: Gt | None, most: Le | None, below: Lt | None) -> str:
    if least is not None and most is not None:
        return f"{least.ge} to {most.le}"
    if above is not None:
        return f"above {above.gt}" + (f", below {below.lt}" if below else "")
    return f"at least {least.ge}" if least else ""


@dataclasses.dataclass(frozen=True)
class Naming:
    """How errors name settings: as whoever gave them wrote them."""

    place: str  # where they stand: a verb, a file
    name: Callable[[str], str]  # a setting's flag, its key in the file, its variable


_naming: ContextVar[Naming | None] = ContextVar("naming", default=None)


@contextmanager
def errors_named(naming: Naming) -> Iterator[None]:
    """Inside it a configuration that is made names its settings so in errors."""
    token = _naming.set(naming)
    try:
        yield
    finally:
        _naming.reset(token)


def shown(name: str) -> str:
    """The setting called `name` as errors name it; outside of `errors_named` by this name."""
    naming = _naming.get()
    return naming.name(name) if naming else name


def flag_of(kind: type[Configuration], name: str) -> str:
    """The flag of the setting called `name`."""
    return next(setting.flag_name for setting in settings_of(kind) if setting.name == name)


def split_names(kind: type[Configuration], values: Mapping[str, Any]) -> dict[str, Any]:
    """The same values; lists that came as one text, from a flag, a file or a variable, are cut at their commas."""
    lists = {setting.name for setting in settings_of(kind) if setting.type is tuple}
    return {
        name: _split(value) if name in lists and isinstance(value, str) else value for name, value in values.items()
    }


def _split(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _usage_error(kind: type[Configuration], errors: Sequence[ErrorDetails]) -> UsageError:
    """The first of what pydantic found wrong; what is unknown or missing goes before."""
    settings, naming = settings_of(kind), _naming.get()
    place = naming.place if naming else kind.__name__
    names = [setting.name for setting in settings]
    for error in errors:
        if error["type"] == "unexpected_keyword_argument":
            return UsageError(f"{place}: {unknown_name('key', str(error['loc'][0]), names)}")
        if error["type"] == "unexpected_positional_argument":
            return UsageError(f"{place} has {len(names)} settings", fix="give them by their names")
    missing = [str(error["loc"][0]) for error in errors if error["type"] == "missing"]
    if missing:
        fix = f"give {', '.join(map(shown, missing))}" if naming else None
        return UsageError(f"{place} lacks {', '.join(missing)}", fix=fix)
    first = errors[0]["loc"][0]  # a name, or the place of a positional argument
    return _explanation(settings[first if isinstance(first, int) else names.index(first)], errors[0])


def _explanation(setting: Setting, error: ErrorDetails) -> UsageError:
    value, name = error["input"], shown(setting.name) + "".join(f"[{index}]" for index in error["loc"][1:])
    match error["type"]:
        case "one_of":
            problem = unknown_name(setting.name.replace("_", " "), value, list(setting.choices))
            return UsageError(problem if name == setting.name else f"{name}: {problem}")
        case "greater_than_equal" | "less_than_equal" | "less_than":
            return UsageError(f"{name} is out of range", found=value, expected=setting.range)
        case "greater_than":
            return UsageError(f"{name} must be above zero", found=value)
        case "finite_number":
            return UsageError(f"{name} is not finite", found=value)
        case "multiple_argument_values":
            return UsageError(f"{name} is given twice")
    item = setting.type if len(error["loc"]) == 1 else str
    expected = error.get("ctx", {}).get("expected", item.__name__)
    found = f"{type(value).__name__} {value!r}"[:120]
    return UsageError(f"{name} has the wrong type", found=found, expected=expected)
