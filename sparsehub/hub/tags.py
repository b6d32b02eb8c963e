"""Tags: the names of published versions, each written once and pointing at a digest."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from sparsehub.errors import FormatError, HubError, IntegrityError, NotFoundError, UsageError, VersionExistsError
from sparsehub.files import canonical_json, strict_json
from sparsehub.hub.objects import Objects
from sparsehub.hub.protocol import Resolved
from sparsehub.hub.reference import check_digest, check_tag, check_task_name
from sparsehub.hub.versions import version_order
from sparsehub.schema import build, unknown_name

TAGS = "tags"
MAX_TAG_BYTES = 1024
_MAX_SHOWN = 20


@dataclass(frozen=True)
class TagRecord:
    """The content of a tag object."""

    digest: str


class Tags:
    """The objects `tags/<name>/<version>` of a hub."""

    def __init__(self, objects: Objects):
        self._objects = objects

    def names(self) -> list[str]:
        """Every folder under `tags`, badly named ones included."""
        return self._objects.folders(TAGS)

    def versions(self, name: str) -> list[str]:
        """Every object under a task's folder, badly named ones included."""
        return self._objects.files(f"{TAGS}/{name}")

    def read(self, name: str, version: str) -> str | None:
        """The digest under a tag, None where there is no tag; raises `IntegrityError` for a malformed one."""
        path = f"{TAGS}/{name}/{version}"
        data = self._objects.read(path, MAX_TAG_BYTES)
        if data is None:
            return None
        try:
            record = build(TagRecord, strict_json(data, path), path, IntegrityError)
            check_digest(record.digest)
        except (FormatError, UsageError) as error:
            fix = "remove it from the hub and tag the digest again"
            raise IntegrityError(f"the tag {path} is damaged", found=str(error), fix=fix) from error
        return record.digest

    def write(self, resolved: Resolved) -> Resolved:
        """Write a tag, or find the same one there; raises `VersionExistsError`."""
        path, content = f"{TAGS}/{resolved.name}/{resolved.version}", canonical_json({"digest": resolved.digest})
        if not self._objects.create(path, content) and not self.holds(resolved):
            raise HubError(f"the tag {path} cannot be written: something else is there", fix="remove it from the hub")
        return resolved

    def holds(self, resolved: Resolved) -> bool:
        """Whether the version is this very package already; raises `VersionExistsError` where it is another."""
        there = self.read(resolved.name, str(resolved.version))
        if there is not None and there != resolved.digest:
            raise VersionExistsError(
                f"{resolved.name}@{resolved.version} was published before and is another package",
                found=there,
                expected=resolved.digest,
                fix="publish under a new version",
            )
        return there is not None

    def unknown_task(self, name: str) -> NotFoundError:
        """The error for a task that is not here, with near names or some of the known ones."""
        known = [other for other in self.names() if is_safe(other)]
        if not known:
            return NotFoundError(f"unknown task {name!r}", found="a hub without any task", fix="publish it first")
        shown = difflib.get_close_matches(name, known, n=1) or sorted(known)[:_MAX_SHOWN]
        return NotFoundError(unknown_name("task", name, shown))

    def unknown_version(self, name: str, version: str) -> NotFoundError:
        """The error for a version that is not here, with the versions that are."""
        known = sorted((v for v in self.versions(name) if is_safe(name, v)), key=version_order, reverse=True)
        if not known:
            return self.unknown_task(name)
        shown = ", ".join(known[:_MAX_SHOWN]) + (", ..." if len(known) > _MAX_SHOWN else "")
        return NotFoundError(f"{name} has no version {version!r}", expected=f"one of {shown}")


def is_safe(name: str, version: str = "0") -> bool:
    """Whether this name and version could have been published; anybody may have put other files there."""
    try:
        check_task_name(name)
        check_tag(version)
    except UsageError:
        return False
    return True
