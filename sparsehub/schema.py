"""Build frozen dataclasses from parsed JSON or YAML, strictly: manifests, channels, keys, catalogues.

Types are checked, and an unknown key is an error that names the nearest known one.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from sparsehub.errors import SparsehubError

T = TypeVar("T")
_PLAIN = frozenset({str, int, bool})


def unknown_name(what: str, name: str, known: list[str]) -> str:
    """The message for a name that nothing knows, with the nearest known one where there is one."""
    name = name[:200]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f", did you mean {near[0]!r}?" if near else f" (known: {', '.join(sorted(known))})"
    return f"unknown {what} {name!r}{hint}"


def build(kind: type[T], data: Any, where: str, error: type[SparsehubError]) -> T:
    """Make the dataclass `kind` of the dictionary `data`; raises `error`, which names the place (`where`)."""
    if not isinstance(data, Mapping):
        raise error(f"{where} has the wrong type", found=type(data).__name__, expected="an object")
    hints, required = _plan(typing.cast(Any, kind))
    for key in data:
        if key not in hints:
            raise error(f"{where}: {unknown_name('key', str(key), list(hints))}")
    if missing := [name for name in required if name not in data]:
        raise error(f"{where} lacks {', '.join(missing)}")
    return kind(**{key: value if _is_plain(hints[key], value) else _value(hints[key], value, f"{where}.{key}", error)
                   for key, value in data.items()})  # fmt: skip


@functools.cache
def _plan(kind: type[Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Types of a class's fields, and those that must be given: finding them takes longer than checking the values."""
    types_of, fields = typing.get_type_hints(kind), dataclasses.fields(kind)
    return {field.name: types_of[field.name] for field in fields}, tuple(f.name for f in fields if _required(f))


@functools.cache
def _parts(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    return typing.get_origin(hint), typing.get_args(hint)


def _is_plain(hint: Any, value: object) -> bool:
    """Whether a value can stay as it is. Nearly all can, and naming the place of each would take most of the time."""
    return type(value) is hint and hint in _PLAIN


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _value(hint: Any, value: Any, where: str, error: type[SparsehubError]) -> Any:
    origin, arguments = _parts(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _value(next(a for a in arguments if a is not type(None)), value, where, error)
    if dataclasses.is_dataclass(hint):
        return build(typing.cast(Any, hint), value, where, error)
    if origin is tuple and isinstance(value, list | tuple):
        if all(_is_plain(arguments[0], item) for item in value):
            return tuple(value)
        return tuple(_value(arguments[0], item, f"{where}[{i}]", error) for i, item in enumerate(value))
    if origin is dict and isinstance(value, Mapping):
        return {str(key): _value(arguments[1], item, f"{where}.{key}", error) for key, item in value.items()}
    return _scalar(hint, value, where, error)


def _scalar(hint: Any, value: Any, where: str, error: type[SparsehubError]) -> Any:
    if hint is float and type(value) is int and abs(value) < 1 << 1000:  # more would overflow
        return float(value)
    if hint in (str, int, float, bool) and type(value) is hint:
        if hint is float and not math.isfinite(value):
            raise error(f"{where} is not finite", found=value)
        return value
    expected = getattr(hint, "__name__", str(hint))
    raise error(f"{where} has the wrong type", found=f"{type(value).__name__} {value!r}"[:120], expected=expected)
