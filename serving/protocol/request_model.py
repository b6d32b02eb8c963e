"""The base of the bodies of requests: null means absent, and what asks for nothing is accepted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import BeforeValidator, FailFast, Field, GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from serving.protocol.base import ApiModel
from sparsehub.errors import RequestError
from sparsehub.package.encoding import is_broken
from sparsehub.task_ref import is_pattern

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

    def __init__(
        self, param: str, problem: str, *, found: object = None, expected: object = None, fix: str | None = None
    ):
        super().__init__(problem, found=found, expected=expected, fix=fix)
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


def _one_task(model: Any) -> Any:
    """Raise `FieldError` for a list or a pattern of tasks."""
    listed = isinstance(model, list)
    if listed or (isinstance(model, str) and is_pattern(model)):
        found = f"a list of {len(model)}" if listed else f"the pattern {model[:200]!r}"
        fix = "ask one by one; /v1/classify, /v1/score, /v1/embeddings and /v2/models/.../infer take several"
        raise FieldError("model", "this route asks one task", found=found, expected="one task", fix=fix)
    return model


def _tasks(model: Any) -> Any:
    """Raise `FieldError` for a list that holds no names. pydantic would say that it is no string."""
    if not isinstance(model, list):
        return model
    if not 0 < len(model) <= MOST_TASKS:
        problem, expected = "`model` is no list of tasks", f"1 to {MOST_TASKS} names"
        raise FieldError("model", problem, found=f"{len(model)} names", expected=expected)
    for place, name in enumerate(model):
        if not isinstance(name, str) or not 0 < len(name) <= MOST_CHARACTERS or is_broken(name):
            found, expected = repr(name)[:100], f"a text of 1 to {MOST_CHARACTERS} characters"
            raise FieldError("model", f"name {place} of the list is no task's", found=found, expected=expected)
    return model


MOST_TASKS = 1000  # of one request
MOST_CHARACTERS = 300  # of a name
Name = Annotated[str, Field(min_length=1, max_length=MOST_CHARACTERS)]
OneTask = Annotated[Name, BeforeValidator(_one_task)]
"""What `model` is where several tasks would make no sense: documents have one order, a text one author."""
SomeTasks = Annotated[
    Name | Annotated[ListOf[Name], Field(min_length=1, max_length=MOST_TASKS)], BeforeValidator(_tasks)
]
"""What `model` is where a list or a pattern may stand in it."""


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
