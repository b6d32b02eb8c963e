"""What the settings of a file's layout may be, for the configurations and verbs that have them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator

from sparsehub.settings import Fallback, wrong_type

DETECTED = Fallback("detected")


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


Delimiter = Annotated[str, BeforeValidator(_check_delimiter)]
Encoding = Annotated[str, BeforeValidator(_check_encoding)]
