"""The settings of a file's layout, each defined once, for the configurations and verbs that have them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field
from pydantic.dataclasses import dataclass

from sparsehub.settings import FROZEN, Configuration, Fallback, Flag, OneOf, wrong_type
from sparsehub.training.tables.records import QUOTINGS

DATA = "Data"  # a box of the command line's help
_DETECTED = Fallback("detected")


def _check_delimiter(value: Any) -> Any:
    """One character; a tab also by its name, which is easier to type."""
    value = {"tab": "\t", "\\t": "\t"}.get(value, value) if isinstance(value, str) else value
    if isinstance(value, str) and (len(value) != 1 or value in '"\r\n'):
        raise wrong_type("one character, or tab")
    return value


def _check_encoding(value: Any) -> Any:
    """The name of an encoding of text that Python has."""
    try:
        known = not isinstance(value, str) or isinstance("".encode(value), bytes)
    except (LookupError, ValueError):
        known = False
    if not known:
        raise wrong_type("an encoding that Python has: utf-8, cp1252, utf-16")
    return value


Quoting = Annotated[
    str | None,
    OneOf(QUOTINGS),
    Flag(panel=DATA),
    _DETECTED,
    Field(description="CSV, TSV: a quote inside a quoted cell is double, or escaped by a backslash; or none quotes."),
]
Delimiter = Annotated[
    Annotated[str, BeforeValidator(_check_delimiter)] | None,
    Flag(panel=DATA, metavar="CHARACTER"),
    _DETECTED,
    Field(description="CSV and TSV: what stands between cells, one character or tab."),
]
Encoding = Annotated[
    Annotated[str, BeforeValidator(_check_encoding)] | None,
    Flag(panel=DATA, metavar="NAME"),
    _DETECTED,
    Field(description="Encoding of files of text, as Python calls it: utf-8, cp1252, utf-16."),
]


@dataclass(frozen=True, config=FROZEN)
class Layout(Configuration):
    """How files are to be read where the user says so; None: as it is detected. Raises `UsageError`."""

    quoting: Quoting = None
    delimiter: Delimiter = None
    encoding: Encoding = None
