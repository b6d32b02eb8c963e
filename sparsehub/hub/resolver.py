"""What a task reference means in a hub now: its version, digest and manifest, or the error that names what is there."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sparsehub.errors import NotFoundError
from sparsehub.files import sha256_bytes
from sparsehub.hub.backend import HubBackend
from sparsehub.hub.channels import read_channel
from sparsehub.hub.transfer import damaged
from sparsehub.hub.versions import highest, version_order
from sparsehub.schema import unknown_name
from sparsehub.task_ref import LATEST, TaskRef, check_digest, is_channel, is_safe, reference_of

if TYPE_CHECKING:
    from sparsehub.package import Manifest

_MAX_SHOWN = 20


@dataclass(frozen=True)
class Resolved:
    """A task reference made exact: the digest says which bytes it means."""

    name: str
    version: str | None  # None where the reference named a digest
    digest: str
    channel: str | None = field(default=None, compare=False)  # where the reference named one

    @property
    def pinned(self) -> str:
        """The reference that always means these bytes, as text."""
        return str(self.reference)

    @property
    def reference(self) -> TaskRef:
        """The reference that always means these bytes."""
        return TaskRef(self.name, digest=self.digest)


def resolve(backend: HubBackend, reference: str | TaskRef) -> Resolved:
    """Make a task reference exact; raises `UsageError` for a malformed one, `NotFoundError` for an unknown one."""
    wanted = reference_of(reference)
    if wanted.digest is not None:
        fetch_manifest(backend, wanted.name, wanted.digest)
        return Resolved(wanted.name, None, wanted.digest)
    if wanted.version is not None:
        return resolve_version(backend, wanted.name, wanted.version)
    channel = wanted.channel or LATEST
    found = read_channel(backend, wanted.name, channel)
    if found is not None:
        return Resolved(wanted.name, found.target.version, found.target.digest, channel)
    if wanted.channel not in (None, LATEST):
        raise unknown_version(backend, wanted.name, channel)
    return resolve_version(backend, wanted.name, _highest(backend, wanted.name))


def resolve_version(backend: HubBackend, name: str, version: str) -> Resolved:
    """The digest of a version; raises `NotFoundError`."""
    digest = backend.read_tag(name, version)
    if digest is None:
        raise unknown_version(backend, name, version)
    return Resolved(name, version, digest)


def fetch_manifest(backend: HubBackend, name: str, digest: str) -> Manifest:
    """The manifest of a package of the task `name`, validated; raises `NotFoundError` and `FormatError`."""
    from sparsehub.package.manifest import parse_manifest

    check_digest(digest)
    data = backend.read_manifest(name, digest)
    if data is None:
        raise NotFoundError(f"the hub holds no package {name}@{digest}", fix="list the hub to see what it holds")
    if sha256_bytes(data) != digest:
        raise damaged(f"the manifest of {name}", sha256_bytes(data), digest)
    manifest = parse_manifest(data)
    if manifest.name != name:
        raise NotFoundError(f"{digest} is a package of another task", found=manifest.name, expected=name)
    return manifest


def unknown_task(backend: HubBackend, name: str) -> NotFoundError:
    """The error for a task that is not in the hub, with near names or some of the known ones."""
    known = [other for other in backend.names() if is_safe(other)]
    if not known:
        fix = backend.hint or "publish it first"
        return NotFoundError(f"unknown task {name!r}", found="a hub without any task", fix=fix)
    shown = difflib.get_close_matches(name, known, n=1) or sorted(known)[:_MAX_SHOWN]
    return NotFoundError(unknown_name("task", name, shown), fix=backend.hint)


def unknown_version(backend: HubBackend, name: str, version: str) -> NotFoundError:
    """The error for a version or channel that is not in the hub, with those that are."""
    known = sorted((v for v in backend.versions(name) if is_safe(name, v)), key=version_order, reverse=True)
    if not known:
        return unknown_task(backend, name)
    shown = [*filter(is_channel, backend.channels(name)), *known]
    expected = ", ".join(shown[:_MAX_SHOWN]) + (", ..." if len(shown) > _MAX_SHOWN else "")
    what = "channel" if is_channel(version) else "version"
    return NotFoundError(f"{name} has no {what} {version!r}", expected=f"one of {expected}")


def _highest(backend: HubBackend, name: str) -> str:
    versions = [version for version in backend.versions(name) if is_safe(name, version)]
    if not versions:
        raise unknown_task(backend, name)
    return highest(versions)
