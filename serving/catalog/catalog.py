"""The catalogue as it is stored."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sparsehub.errors import FormatError, UsageError
from sparsehub.files import canonical_json, strict_json
from sparsehub.schema import build
from sparsehub.task_ref import check_digest, check_task_name

MAX_CATALOG_BYTES = 4 << 20
REMEMBERED = 20  # stable versions before the one of today


@dataclass(frozen=True)
class CatalogTarget:
    """One version of a task. The digest says which bytes it is; the version is what people call it."""

    version: str
    digest: str

    def __post_init__(self) -> None:
        check_digest(self.digest)
        if not 0 < len(self.version) <= 100:
            raise UsageError("a version is a short word", found=repr(self.version)[:120])


@dataclass(frozen=True)
class CatalogEntry:
    """One task.

    canary: a version that gets `canary_percent` of the callers; pinned: it stays in memory; the quotas are for all
    callers of one replica together; before: what `stable` was, the last one last.
    """

    stable: CatalogTarget
    canary: CatalogTarget | None = None
    canary_percent: float = 0.0
    pinned: bool = False
    items_per_second: float | None = None
    tokens_per_second: float | None = None
    before: tuple[CatalogTarget, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.canary_percent <= 100:
            raise UsageError("a canary's share is a percentage", found=self.canary_percent, expected="0 to 100")
        for quota in (self.items_per_second, self.tokens_per_second):
            if quota is not None and quota <= 0:
                raise UsageError("a quota is not above 0", found=quota)

    @property
    def targets(self) -> tuple[CatalogTarget, ...]:
        """Every version that is served."""
        return (self.stable,) if self.canary is None else (self.stable, self.canary)


@dataclass(frozen=True)
class Catalog:
    """revision: how often it was changed; tasks: by name."""

    revision: int = 0
    tasks: Mapping[str, CatalogEntry] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def to_bytes(self) -> bytes:
        return canonical_json(self.to_json())


@dataclass(frozen=True)
class _Stored:
    revision: int
    tasks: dict[str, CatalogEntry]


def parse_catalog(data: bytes) -> Catalog:
    """A catalogue from its bytes; raises `UsageError` for anything that is not exactly one."""
    try:
        found = build(_Stored, strict_json(data, "the catalogue", MAX_CATALOG_BYTES), "the catalogue", UsageError)
    except FormatError as error:
        raise UsageError(str(error)) from error
    for name in found.tasks:
        check_task_name(name)
    return Catalog(found.revision, found.tasks)
