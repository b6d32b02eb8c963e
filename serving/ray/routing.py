"""From a request, as it comes, to the tasks that it asks: by those it is sent to a replica which has them ready.

It is a guess that decides nothing else: what a request means and who may ask is said where it is answered.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from starlette.types import Scope

from sparsehub.errors import RequestError
from sparsehub.task_ref import is_pattern, parse_model

MOST_PLACED = 64  # tasks of a request by which its replica is chosen
_IN_PATH = ("/v2/models/", "/v1/models/")
_CARRIED = ("type", "http_version", "method", "scheme", "query_string", "headers", "client", "server")


def tasks_in(path: str, body: bytes) -> list[str]:
    """The names of the tasks, of a composition the first one's; or one pattern. Empty where there is none."""
    for prefix in _IN_PATH:
        if path.startswith(prefix):
            return _names(path.removeprefix(prefix).partition("/")[0].split(","))
    with suppress(ValueError, RecursionError):  # a body that is no JSON is the answering replica's to refuse
        found = json.loads(body) if body else None
        model = found.get("model") if isinstance(found, dict) else None
        return _names(model if isinstance(model, list) else [model])
    return []


def place_of(tasks: Iterable[str]) -> str:
    """What Ray places a request by, its `multiplexed_model_id`: the same for the same tasks in any order."""
    return ",".join(sorted(tasks))


def tasks_of(place: str) -> list[str]:
    """The tasks that a request is placed by."""
    return place.split(",") if place else []


def may_repeat(scope: Scope) -> bool:
    """Whether a request may be sent a second time: all but those that change the catalogue."""
    return scope["method"] == "GET" or not scope["path"].startswith("/v1/admin")


def carried(scope: Scope) -> dict[str, Any]:
    """What of a connection's scope goes to another process. The path loses the prefix that the app is mounted at:
    who may ask what is known by paths without one."""
    path = scope["path"].removeprefix(scope.get("root_path", "").rstrip("/")) or "/"
    plain = {key: scope[key] for key in _CARRIED if key in scope}
    plain["headers"] = [(bytes(name), bytes(value)) for name, value in scope["headers"]]
    return {**plain, "path": path, "raw_path": path.encode(), "root_path": "", "asgi": {"spec_version": "2.3"}}


def _names(models: list[Any]) -> list[str]:
    """Each name once. A pattern stands alone: a list that holds one is the answering replica's to refuse."""
    if len(models) == 1 and isinstance(models[0], str) and is_pattern(models[0]):
        return models if len(models[0]) <= 300 else []
    named = (_name(model.strip()) for model in models[:MOST_PLACED] if isinstance(model, str))
    return [name for name in dict.fromkeys(named) if name]


def _name(model: str) -> str:
    with suppress(RequestError):  # a malformed composition is the answering replica's to refuse, too
        return parse_model(model[:300]).names[0]
    return ""
