"""From a request, as it comes, to the task that it asks: by that it is sent to a replica which has the task ready.

It is a guess that decides nothing else: what a request means and who may ask is said where it is answered.
"""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

from starlette.types import Scope

from sparsehub.errors import RequestError
from sparsehub.task_ref import parse_model

_IN_PATH = ("/v2/models/", "/v1/models/")
_CARRIED = ("type", "http_version", "method", "scheme", "query_string", "headers", "client", "server")


def task_in(path: str, body: bytes) -> str:
    """The name of the task, or of the first one of a composition or a list; empty where there is none."""
    for prefix in _IN_PATH:
        if path.startswith(prefix):
            return _name(path.removeprefix(prefix).partition("/")[0])
    with suppress(ValueError, RecursionError):  # a body that is no JSON is the answering replica's to refuse
        found = json.loads(body) if body else None
        model = found.get("model") if isinstance(found, dict) else None
        first = model[0] if isinstance(model, list) and model else model
        if isinstance(first, str):
            return _name(first)
    return ""


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


def _name(model: str) -> str:
    with suppress(RequestError):  # a malformed composition is the answering replica's to refuse, too
        return parse_model(model[:300]).names[0]
    return ""
