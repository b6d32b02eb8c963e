"""Copies of packages from one hub to another, byte for byte: same digest, same signature."""

from __future__ import annotations

from pathlib import Path

from sparsehub.errors import IntegrityError
from sparsehub.hub.lockfile import Lock
from sparsehub.hub.package_hub import PackageHub
from sparsehub.hub.package_loader import use_package
from sparsehub.hub.resolver import Resolved
from sparsehub.hub.transfer import Progress
from sparsehub.package.policy import Policy
from sparsehub.task_ref import TaskRef, reference_of


def copy_package(
    reference: str | TaskRef,
    source: PackageHub,
    target: PackageHub,
    *,
    policy: Policy | None = None,
    lock: Lock | None = None,
    progress: Progress | None = None,
) -> Resolved:
    """Publish in `target` what a reference means in `source`, under the same version.

    Where the reference names a channel, the channel of that name in `target` is moved to it. A version name that was
    given to the package later (`tag`) is given to the copy too. Raises what `use_package` and `publish` raise.
    """

    wanted = reference_of(reference)

    def publish(folder: Path, found: Resolved) -> Resolved:
        copied = target.publish(folder, progress=progress)
        if copied.digest != found.digest:
            raise IntegrityError("the copy is another package", found=copied.digest, expected=found.digest)
        if found.version not in (None, copied.version):
            target.tag(found.name, str(found.version), found.digest)
        if found.channel is not None and wanted.channel is not None:
            target.tag(found.name, found.channel, found.digest)
        return Resolved(found.name, found.version or copied.version, found.digest, found.channel)

    return use_package(wanted, source, publish, policy=policy, lock=lock)


def references_of(name: str, hub: PackageHub) -> list[str]:
    """References to every version of a task, from the lowest to the highest, and to its channels."""
    versions = [f"{name}@{entry.version}" for entry in hub.list(name)]
    return [*versions, *(f"{name}@{channel}" for channel in sorted(hub.channels(name)))]
