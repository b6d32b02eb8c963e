"""Garbage collection of a hub: objects that no version and no channel needs, as interrupted publishes leave."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sparsehub.errors import HubError, NotFoundError, SparsehubError, UsageError
from sparsehub.hub.blob_store_backend import BLOBS, MANIFESTS, SIGNATURES, BlobStoreBackend, object_path
from sparsehub.hub.channels import read_channel
from sparsehub.hub.package_hub import PackageHub
from sparsehub.progress import work
from sparsehub.task_ref import is_channel, is_safe

# A running publish has written objects that nothing references yet; none takes this long. `REUSABLE` is half of it.
GRACE = timedelta(hours=24)


@dataclass(frozen=True)
class Garbage:
    """An object that no version and no channel needs."""

    path: str
    size: int  # bytes


def find_garbage(hub: PackageHub, grace: timedelta = GRACE) -> list[Garbage]:
    """Every object that is not needed and older than `grace`; nothing is removed.

    Raises `HubError` where a version or channel cannot be read, since what it needs would be taken for garbage, and
    `UsageError` for a hub that does its own garbage collection.
    """
    backend, found = _store(hub), []
    with work("looking for what nothing needs"):
        needed, before = _needed(hub), datetime.now(UTC) - grace
        for folder in (MANIFESTS, SIGNATURES, BLOBS):  # in the order in which to remove them
            for path, size, changed in backend.objects.ages(f"{folder}/sha256"):
                if path not in needed and changed < before:
                    found.append(Garbage(path, size))
    return found


def remove_garbage(hub: PackageHub, garbage: list[Garbage], grace: timedelta = GRACE) -> list[Garbage]:
    """Remove what `find_garbage` found, except what a publisher has reused meanwhile; returns what was removed."""
    backend, before, removed = _store(hub), datetime.now(UTC) - grace, []
    with work("removing", len(garbage), "objects") as advance:
        for item in garbage:
            changed = backend.objects.changed(item.path)
            if changed is not None and changed < before:
                backend.objects.delete(item.path)
                removed.append(item)
            advance(1)
    return removed


def _store(hub: PackageHub) -> BlobStoreBackend:
    if not isinstance(hub.backend, BlobStoreBackend):
        raise UsageError("this hub cleans up after itself", found=hub.where, expected="a folder or a bucket")
    return hub.backend


def _needed(hub: PackageHub) -> set[str]:
    """The paths of all objects that versions and channels need."""
    digests = {(name, digest) for name in hub.backend.names() if is_safe(name) for digest in _digests(hub, name)}
    with ThreadPoolExecutor(hub.backend.requests) as workers:
        return {path for paths in workers.map(lambda item: _objects(hub, *item), digests) for path in paths}


def _digests(hub: PackageHub, name: str) -> Iterator[str]:
    backend = hub.backend
    try:
        for version in backend.versions(name):
            if is_safe(name, version) and (digest := backend.read_tag(name, version)) is not None:
                yield digest
        for channel in filter(is_channel, backend.channels(name)):
            if (found := read_channel(backend, name, channel)) is not None:
                yield from (target.digest for target in (found.target, *found.before))
    except SparsehubError as error:
        raise _unknown(name, error) from error


def _objects(hub: PackageHub, name: str, digest: str) -> set[str]:
    try:
        manifest = hub.manifest(name, digest)
    except NotFoundError:
        return set()  # a version whose manifest is lost needs no objects
    except SparsehubError as error:
        raise _unknown(f"{name}@{digest}", error) from error
    blobs = {object_path(BLOBS, record.sha256) for record in manifest.files.values()}
    return blobs | {object_path(MANIFESTS, digest), object_path(SIGNATURES, digest)}


def _unknown(what: str, error: SparsehubError) -> HubError:
    fix = "repair or remove it first: what it needs cannot be told from garbage"
    return HubError(f"{what} cannot be read, so nothing is collected", found=str(error), fix=fix)
