"""The changes of a catalogue, each from one to the next. All raise `UsageError` where they make no sense."""

from __future__ import annotations

import dataclasses
import difflib

from serving.catalog.catalog import REMEMBERED, Catalog, CatalogEntry, CatalogTarget
from sparsehub.errors import ConflictError, NotFoundError, UsageError


def add(catalog: Catalog, name: str, entry: CatalogEntry) -> Catalog:
    """Serve one more task."""
    if name in catalog.tasks:
        fix = "move it: sparsehub catalog set NAME --version, or try a version first: sparsehub catalog canary"
        raise UsageError(f"{name} is in the catalogue already", found=catalog.tasks[name].stable.version, fix=fix)
    return _with(catalog, name, entry)


def remove(catalog: Catalog, name: str) -> Catalog:
    """Serve a task no longer; requests that have begun are still answered."""
    entry_of(catalog, name)
    return Catalog(catalog.revision + 1, {other: entry for other, entry in catalog.tasks.items() if other != name})


def set_options(catalog: Catalog, name: str, **options: object) -> Catalog:
    """Change an entry's pin or quotas."""
    return _with(catalog, name, dataclasses.replace(entry_of(catalog, name), **options))  # type: ignore[arg-type]


def move(catalog: Catalog, name: str, target: CatalogTarget) -> Catalog:
    """Let everybody have another version at once; a canary that runs goes on."""
    entry = entry_of(catalog, name)
    if target == entry.stable:
        raise UsageError(f"{name} is at {target.version} already", found=target.digest)
    return _with(catalog, name, _moved(entry, target))


def canary(catalog: Catalog, name: str, target: CatalogTarget, percent: float) -> Catalog:
    """Let some callers have another version."""
    entry = entry_of(catalog, name)
    if target.digest == entry.stable.digest:
        raise UsageError(f"{name}@{target.version} is the stable version already", found=target.digest)
    return _with(catalog, name, dataclasses.replace(entry, canary=target, canary_percent=percent))


def promote(catalog: Catalog, name: str) -> Catalog:
    """Let everybody have the canary's version."""
    entry = entry_of(catalog, name)
    if entry.canary is None:
        raise UsageError(f"{name} has no canary", fix="start one: sparsehub catalog canary")
    moved = _moved(entry, entry.canary)
    return _with(catalog, name, dataclasses.replace(moved, canary=None, canary_percent=0.0))


def rollback(catalog: Catalog, name: str) -> Catalog:
    """Take a canary back; where none runs, take the stable version back to the one before it."""
    entry = entry_of(catalog, name)
    if entry.canary is not None:
        return _with(catalog, name, dataclasses.replace(entry, canary=None, canary_percent=0.0))
    if not entry.before:
        raise UsageError(f"{name} was never at another version", found=entry.stable.version)
    back = dataclasses.replace(entry, stable=entry.before[-1], before=entry.before[:-1])
    return _with(catalog, name, back)


def expect(catalog: Catalog, revision: int | None) -> None:
    """Raises `ConflictError` unless the catalogue is at the revision that the caller expects, if one is given."""
    if revision is not None and catalog.revision != revision:
        raise ConflictError(
            "the catalogue has changed meanwhile",
            found=f"revision {catalog.revision}",
            expected=f"revision {revision}",
            fix="look at it again",
        )


def entry_of(catalog: Catalog, name: str) -> CatalogEntry:
    """Raises `NotFoundError`, which names the nearest."""
    if name not in catalog.tasks:
        near = difflib.get_close_matches(name[:200], catalog.tasks, n=1)
        hint = f", did you mean {near[0]!r}?" if near else ""
        raise NotFoundError(f"the catalogue has no task {name[:200]!r}{hint}")
    return catalog.tasks[name]


def _moved(entry: CatalogEntry, target: CatalogTarget) -> CatalogEntry:
    return dataclasses.replace(entry, stable=target, before=(*entry.before, entry.stable)[-REMEMBERED:])


def _with(catalog: Catalog, name: str, entry: CatalogEntry) -> Catalog:
    return Catalog(catalog.revision + 1, {**catalog.tasks, name: entry})
