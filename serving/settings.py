"""What an endpoint serves and how, read from the environment once, at start-up.

Environment variables reach a service however it is started: `sparsehub serve`, `bentoml serve`, a container.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsehub.errors import UsageError
from sparsehub.schema import unknown_name

PREFIX = "SPARSEHUB_"
_NOT_SETTINGS = {"SPARSEHUB_CACHE"}
_BOOLEANS = {"True": True, "true": True, "1": True, "False": False, "false": False, "0": False}


@dataclass(frozen=True)
class Settings:
    """backbone: a folder or an id; hub: a folder; tasks: references or package folders, empty for all of the hub.

    policy: a file that says whose packages may run; the settings of the user who serves where there is none.

    mode: how batches run: `auto`, `swap` or `mixed`; device_mib, host_mib: memory for tasks; 0 is no bound on the
    device, and nothing on the host.

    cache_tokens, new_tokens: of text generation: tokens that its cache holds, and the most that one text may get.

    timeout: seconds until a waiting row is given up, or a body that does not come; below the server's own limit, so
    that the reason reaches the client.

    keys: the key file; without one the endpoint answers its own machine only, unless `open` lets everybody ask.
    catalog: a file or HUB#NAME; what it says is served then, and `tasks` is empty.
    body_kib, max_items, max_tokens: of one request.
    console: whether the page for browsers is there, at /console.
    """

    backbone: str
    revision: str | None = None
    hub: str | None = None
    tasks: tuple[str, ...] = ()
    policy: str | None = None
    dtype: str = "float32"
    device: str = "cpu"
    queue_rows: int = 4096
    batch_tokens: int = 4096
    batch_rows: int = 64
    timeout: float = 50.0
    mode: str = "auto"
    device_mib: int = 0
    host_mib: int = 0
    cache_tokens: int = 8192
    new_tokens: int = 1024
    keys: str | None = None
    catalog: str | None = None
    open: bool = False
    body_kib: int = 4096
    max_items: int = 1024
    max_tokens: int = 262_144
    console: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.timeout < math.inf:
            raise UsageError(f"{PREFIX}TIMEOUT must be a number of seconds above 0", found=self.timeout)
        if self.device_mib < 0 or self.host_mib < 0:
            raise UsageError("a budget is a number of MiB", found=f"{self.device_mib}, {self.host_mib}")
        for name in ("body_kib", "max_items", "max_tokens"):
            if getattr(self, name) < 1:
                raise UsageError(f"{PREFIX}{name.upper()} must be at least 1", found=getattr(self, name))
        if self.catalog is not None and self.tasks:
            raise UsageError("the catalogue says which tasks are served", found=", ".join(self.tasks), fix="name none")
        if self.keys is not None and self.open:
            raise UsageError("an endpoint with keys is not open", fix=f"leave out {PREFIX}OPEN, or {PREFIX}KEYS")

    def to_environment(self) -> dict[str, str]:
        """The variables that `read_settings` turns back into these settings."""
        values = dataclasses.asdict(self)
        return {
            PREFIX + name.upper(): ",".join(value) if isinstance(value, tuple) else str(value)
            for name, value in values.items()
            if value is not None
        }


def read_settings(environment: Mapping[str, str]) -> Settings:
    """Settings from variables like SPARSEHUB_BACKBONE; raises `UsageError` for unknown or malformed ones."""
    fields = {field.name: field for field in dataclasses.fields(Settings)}
    given = {
        name: value for name, value in environment.items() if name.startswith(PREFIX) and name not in _NOT_SETTINGS
    }
    values: dict[str, Any] = {}
    for variable, text in given.items():
        name = variable.removeprefix(PREFIX).lower()
        if name not in fields:
            raise UsageError(unknown_name("setting", variable, [PREFIX + field.upper() for field in fields]))
        values[name] = _parse(variable, str(fields[name].type), text)
    if "backbone" not in values:
        raise UsageError(
            "no backbone is set", fix=f"set {PREFIX}BACKBONE, or start with: sparsehub serve --backbone ..."
        )
    if not any(values.get(source) for source in ("hub", "tasks", "catalog")):
        raise UsageError("nothing to serve", fix=f"set {PREFIX}HUB or {PREFIX}TASKS")
    return Settings(**values)


def absolute(settings: Settings) -> Settings:
    """The same settings for processes that start in other folders: paths that are there become absolute ones."""
    paths = ("backbone", "hub", "policy", "keys", "catalog")
    given = {name: getattr(settings, name) for name in paths if getattr(settings, name) is not None}
    moved: dict[str, Any] = {name: _absolute(text) for name, text in given.items()}
    return dataclasses.replace(settings, **moved)


def _absolute(text: str) -> str:
    """A place may be HUB#NAME; an id or an address is no path that is there."""
    path, mark, name = text.partition("#")
    found = Path(path)
    return f"{found.absolute()}{mark}{name}" if found.exists() else text


def _parse(variable: str, kind: str, text: str) -> Any:
    try:
        if kind.startswith("tuple"):
            return tuple(part.strip() for part in text.split(",") if part.strip())
        if kind == "bool":
            return _BOOLEANS[text]
        return {"int": int, "float": float}.get(kind, str)(text)
    except KeyError as error:
        raise UsageError(f"{variable} must be True or False", found=repr(text)) from error
    except ValueError as error:
        raise UsageError(f"{variable} must be a number", found=repr(text)) from error
