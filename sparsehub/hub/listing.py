"""What is in a hub, and what to say about what is not."""

from __future__ import annotations

import difflib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from sparsehub.errors import NotFoundError, SparsehubError
from sparsehub.hub.backend import HubBackend
from sparsehub.hub.protocol import Entries, HubEntry
from sparsehub.hub.versions import version_order
from sparsehub.schema import unknown_name
from sparsehub.task_ref import check_task_name, is_channel, is_safe

if TYPE_CHECKING:
    from sparsehub.hub.package_hub import PackageHub
    from sparsehub.package import Manifest

_MAX_SHOWN = 20


def list_entries(hub: PackageHub, name: str | None, newest: bool) -> Entries:
    """The entries of `Hub.list`; reads of many versions run side by side."""
    if name is not None:
        check_task_name(name)
    names = [name] if name is not None else hub.backend.names()
    with ThreadPoolExecutor(hub.backend.requests) as workers:
        tasks = [entry for found in workers.map(lambda task: _versions(hub, task, newest), names) for entry in found]
        entries = list(workers.map(lambda entry: _read(hub, entry), tasks))
    if name is not None and not entries:
        raise unknown_task(hub.backend, name)
    return sorted(entries, key=lambda entry: (entry.name, version_order(entry.version)))


def _versions(hub: PackageHub, name: str, newest: bool) -> Entries:
    """The versions of a task, with nothing but their names and channels."""
    if not is_safe(name):
        return [_stray(name, "", "this is no task's name")]
    try:
        targets = {channel: found.target.version for channel, found in hub.channels(name).items()}
        versions = [hub.resolve(name).version or ""] if newest else hub.backend.versions(name)
    except SparsehubError as error:
        return [HubEntry(name, "", error=str(error))]
    return [
        HubEntry(name, version, channels=tuple(c for c, v in targets.items() if v == version)) for version in versions
    ]


def _read(hub: PackageHub, entry: HubEntry) -> HubEntry:
    """The entry with what its manifest says, or with the error that comes of reading it."""
    name, version, digest = entry.name, entry.version, None
    if entry.error is not None:
        return entry
    if not is_safe(name, version):
        return _stray(name, version, "this is no version that could be published")
    try:
        digest = hub.resolve_version(name, version).digest
        return _described(name, version, hub.manifest(name, digest), entry.channels)
    except SparsehubError as error:
        return HubEntry(name, version, digest, channels=entry.channels, error=str(error))


def _stray(name: str, version: str, problem: str) -> HubEntry:
    return HubEntry(ascii(name)[1:-1], ascii(version)[1:-1], error=problem)


def _described(name: str, version: str, manifest: Manifest, channels: tuple[str, ...]) -> HubEntry:
    return HubEntry(
        name,
        version,
        manifest.digest,
        kind=manifest.task.kind,
        backbone=manifest.backbone.id,
        fingerprint=manifest.backbone.fingerprint,
        method=manifest.delta.method,
        density=manifest.delta.density,
        nnz=manifest.delta.nnz,
        size=len(manifest.to_bytes()) + sum(record.size for record in manifest.files.values()),
        metrics=manifest.metrics,
        channels=channels,
    )


def unknown_task(backend: HubBackend, name: str) -> NotFoundError:
    """The error for a task that is not here, with near names or some of the known ones."""
    known = [other for other in backend.names() if is_safe(other)]
    if not known:
        fix = backend.hint or "publish it first"
        return NotFoundError(f"unknown task {name!r}", found="a hub without any task", fix=fix)
    shown = difflib.get_close_matches(name, known, n=1) or sorted(known)[:_MAX_SHOWN]
    return NotFoundError(unknown_name("task", name, shown), fix=backend.hint)


def unknown_version(backend: HubBackend, name: str, version: str) -> NotFoundError:
    """The error for a version or channel that is not here, with those that are."""
    known = sorted((v for v in backend.versions(name) if is_safe(name, v)), key=version_order, reverse=True)
    if not known:
        return unknown_task(backend, name)
    shown = [*filter(is_channel, backend.channels(name)), *known]
    expected = ", ".join(shown[:_MAX_SHOWN]) + (", ..." if len(shown) > _MAX_SHOWN else "")
    what = "channel" if is_channel(version) else "version"
    return NotFoundError(f"{name} has no {what} {version!r}", expected=f"one of {expected}")
