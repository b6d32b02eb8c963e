"""What an endpoint serves and how, read from the environment once, at start-up.

Environment variables reach a service however it is started: `sparsehub serve`, `bentoml serve`, a container.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sparsehub.errors import UsageError
from sparsehub.schema import unknown_name

PREFIX = "SPARSEHUB_"
_NOT_SETTINGS = {"SPARSEHUB_CACHE"}


@dataclass(frozen=True)
class Settings:
    """backbone: a folder or an id; hub: a folder; tasks: references or package folders, empty for all of the hub.

    mode: how batches run: `auto`, `swap` or `mixed`; device_mib, host_mib: memory for tasks; 0 is no bound on the
    device, and nothing on the host.

    cache_tokens, new_tokens: of text generation: tokens that its cache holds, and the most that one text may get.

    timeout: seconds until a waiting row is given up; below the server's own limit, so that the reason
    reaches the client.
    """

    backbone: str
    revision: str | None = None
    hub: str | None = None
    tasks: tuple[str, ...] = ()
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

    def __post_init__(self) -> None:
        if not 0 < self.timeout < math.inf:
            raise UsageError(f"{PREFIX}TIMEOUT must be a number of seconds above 0", found=self.timeout)
        if self.device_mib < 0 or self.host_mib < 0:
            raise UsageError("a budget is a number of MiB", found=f"{self.device_mib}, {self.host_mib}")

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
    if not values.get("hub") and not values.get("tasks"):
        raise UsageError("nothing to serve", fix=f"set {PREFIX}HUB or {PREFIX}TASKS")
    return Settings(**values)


def _parse(variable: str, kind: str, text: str) -> Any:
    try:
        if kind.startswith("tuple"):
            return tuple(part.strip() for part in text.split(",") if part.strip())
        return {"int": int, "float": float}.get(kind, str)(text)
    except ValueError as error:
        raise UsageError(f"{variable} must be a number", found=repr(text)) from error
