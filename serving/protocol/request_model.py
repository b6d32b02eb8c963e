"""The base of the bodies of requests: null means absent, and what asks for nothing is accepted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import FailFast, GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from serving.protocol.base import ApiModel
from sparsehub.errors import RequestError

Values = tuple[Any, ...] | None
"""The values of a field that ask for nothing; None for a field that changes no answer, whatever it says."""


class _FailFast(FailFast):
    """pydantic's, in unions too: they want what they are made of hashable."""

    __hash__ = object.__hash__


Item = TypeVar("Item")
ListOf = Annotated[list[Item], _FailFast()]
"""A list in a request: the first item of the wrong type ends its validation, or a long list would have an error for
each."""
MOST_FIELDS = 100
"""Of one object; more are no request, and every unknown one would be an error of its own."""


class FieldError(RequestError):
    """One field of a request is at fault. param: its name, which the error's body repeats."""

    def __init__(self, param: str, problem: str, *, found: object = None, expected: object = None):
        super().__init__(problem, found=found, expected=expected)
        self.param = param


class UnsupportedFieldError(FieldError):
    """A field of the API that this endpoint does not serve, at a value that would change the answer."""


class RequestModel(ApiModel):
    """The base of request bodies. Null means absent, in every field that may be."""

    neutral: ClassVar[Mapping[str, Values]] = {}
    """Fields of the API that are accepted where they ask for nothing, and then ignored; others of their values are
    refused as not supported."""

    @model_validator(mode="before")
    @classmethod
    def _drop_neutral(cls, data: Any) -> Any:
        """Raises `FieldError` for too many fields, and `UnsupportedFieldError`."""
        if not isinstance(data, dict):
            return data
        check_fields(data)
        given = {name: value for name, value in data.items() if value is not None or cls._needs(name)}
        for name in given.keys() & cls.neutral.keys():
            _check_neutral(name, given.pop(name), cls.neutral[name])
        return given

    @classmethod
    def _needs(cls, name: str) -> bool:
        field = cls.model_fields.get(name)
        return field is not None and field.is_required()

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """The schema says what the validator accepts."""
        schema = handler(core_schema)
        model = handler.resolve_ref_schema(schema)
        properties, required = model.setdefault("properties", {}), model.get("required", ())
        for name in properties.keys() - set(required):
            properties[name] = _nullable(properties[name])
        properties.update({name: _described(values) for name, values in cls.neutral.items()})
        return schema


def check_fields(data: Any) -> None:
    """Raise `FieldError` for an object of more fields than any request has."""
    if isinstance(data, dict) and len(data) > MOST_FIELDS:
        name = next(iter(data))[:100]
        raise FieldError(name, "an object has too many fields", found=len(data), expected=f"at most {MOST_FIELDS}")


def _check_neutral(name: str, value: Any, values: Values) -> None:
    if values is not None and value not in values:
        expected = " or ".join(["null", *map(repr, values)])
        raise UnsupportedFieldError(name, f"{name} is not supported", found=repr(value)[:100], expected=expected)


def _nullable(field: JsonSchemaValue) -> JsonSchemaValue:
    """null beside what the field's own schema takes; its title, text and default stay outside."""
    null = {"type": "null"}
    kinds = field.get("anyOf")
    if kinds is not None:
        return field if null in kinds else {**field, "anyOf": [*kinds, null]}
    outside: dict[str, Any] = {name: field[name] for name in ("title", "description", "default") if name in field}
    return {**outside, "anyOf": [{name: field[name] for name in field.keys() - outside.keys()}, null]}


def _described(values: Values) -> JsonSchemaValue:
    if values is None:
        kinds = ["string", "number", "boolean", "object", "array", "null"]
        return {"description": "Accepted and ignored: it changes no answer.", "type": kinds}
    text = "Accepted where it asks for nothing; other values are not supported."
    return {"description": text, "enum": [*values, None]}


def as_list(value: Any) -> list[Any]:
    """Inputs of a request, which may be one alone."""
    return value if isinstance(value, list) else [value]


def truncation(tokens: int | None) -> bool | int:
    """What `truncate_prompt_tokens` asks for, as `Engine.prepare` takes it. Raises `FieldError` for zero."""
    if tokens == 0:
        expected = "a positive number, or -1"
        raise FieldError("truncate_prompt_tokens", "truncate_prompt_tokens keeps nothing", expected=expected)
    return tokens == -1 if tokens is None or tokens == -1 else tokens
