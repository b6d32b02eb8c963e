"""The versions in a hub as `PackageHub.list` gives them, damaged ones with their error."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sparsehub.errors import SparsehubError
from sparsehub.hub.backend import HubBackend
from sparsehub.hub.channels import read_channels
from sparsehub.hub.resolver import fetch_manifest, resolve, resolve_version, unknown_task
from sparsehub.hub.versions import version_order
from sparsehub.progress import work
from sparsehub.task_ref import check_task_name, is_safe

if TYPE_CHECKING:
    from sparsehub.package import Manifest


@dataclass(frozen=True)
class HubEntry:
    """One version of a task as a listing shows it.

    A version that cannot be read is listed too: `error` then says why, and only name and version (and the digest,
    where its tag could be read) are meaningful.
    """

    name: str
    version: str
    digest: str | None = None
    kind: str = ""  # of the task: `text-classification`, ...
    backbone: str = ""  # its id
    fingerprint: str = ""  # of the backbone
    method: str = ""
    density: float = 0.0  # changed entries / all entries of the backbone
    nnz: int = 0  # changed entries
    size: int = 0  # bytes of all the package's files
    metrics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # split -> metric -> value
    channels: tuple[str, ...] = ()  # that point at this version
    error: str | None = None


Entries = list[HubEntry]


def list_entries(backend: HubBackend, name: str | None, newest: bool) -> Entries:
    """The entries of `PackageHub.list`; many versions are read side by side."""
    if name is not None:
        check_task_name(name)
    names = [name] if name is not None else backend.names()
    with ThreadPoolExecutor(backend.requests) as workers, work("listing the hub"):
        found = workers.map(lambda task: _list_versions(backend, task, newest), names)
        entries = list(workers.map(lambda entry: _describe(backend, entry), [e for entries in found for e in entries]))
    if name is not None and not entries:
        raise unknown_task(backend, name)
    return sorted(entries, key=lambda entry: (entry.name, version_order(entry.version)))


def _list_versions(backend: HubBackend, name: str, newest: bool) -> Entries:
    """The versions of a task, with nothing but their names and channels."""
    if not is_safe(name):
        return [_invalid(name, "", "this is no task's name")]
    try:
        targets = {channel: found.target.version for channel, found in read_channels(backend, name).items()}
        versions = [resolve(backend, name).version or ""] if newest else backend.versions(name)
    except SparsehubError as error:
        return [HubEntry(name, "", error=str(error))]
    return [
        HubEntry(name, version, channels=tuple(c for c, v in targets.items() if v == version)) for version in versions
    ]


def _describe(backend: HubBackend, entry: HubEntry) -> HubEntry:
    """The entry with what its manifest says, or with the error that reading it gave."""
    name, version, digest = entry.name, entry.version, None
    if entry.error is not None:
        return entry
    if not is_safe(name, version):
        return _invalid(name, version, "this is no version that could be published")
    try:
        digest = resolve_version(backend, name, version).digest
        return _from_manifest(name, version, fetch_manifest(backend, name, digest), entry.channels)
    except SparsehubError as error:
        return HubEntry(name, version, digest, channels=entry.channels, error=str(error))


def _invalid(name: str, version: str, problem: str) -> HubEntry:
    return HubEntry(ascii(name)[1:-1], ascii(version)[1:-1], error=problem)


def _from_manifest(name: str, version: str, manifest: Manifest, channels: tuple[str, ...]) -> HubEntry:
    return HubEntry(
        name,
        version,
        manifest.digest,
        kind=manifest.task.kind,
        backbone=manifest.backbone.id,
        fingerprint=manifest.backbone.fingerprint,
        method=manifest.method,
        density=manifest.density,
        nnz=manifest.nnz,
        size=len(manifest.to_bytes()) + sum(record.size for record in manifest.files.values()),
        metrics=manifest.metrics,
        channels=channels,
    )
