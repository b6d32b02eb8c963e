"""Task references: how a user names a task, one of its versions, or its very bytes."""

from __future__ import annotations

import re
from dataclasses import dataclass

from sparsehub.errors import ManifestError, UsageError

FORMS = "name, name@version or name@sha256:<64 hex digits>"
_DIGEST_LIKE = re.compile(r"(?i)sha256.*|[0-9a-f]{64}")


@dataclass(frozen=True)
class Reference:
    """A parsed task reference. At most one of `version` and `digest` is given; neither means the highest version."""

    name: str
    version: str | None = None
    digest: str | None = None

    def __str__(self) -> str:
        pin = self.version or self.digest
        return f"{self.name}@{pin}" if pin else self.name


def parse_reference(text: str) -> Reference:
    """Parse `name`, `name@version` or `name@sha256:<64 hex>`; raises `UsageError`."""
    name, separator, pin = text.partition("@")
    try:
        check_task_name(name)
        if not separator:
            return Reference(name)
        if pin.startswith("sha256:"):
            check_digest(pin)
            return Reference(name, digest=pin)
        check_tag(pin)
        return Reference(name, version=pin)
    except UsageError as error:
        raise UsageError(f"not a task reference: {error.problem}", found=repr(text)[:200], expected=FORMS) from error


def check_task_name(name: str) -> None:
    """Raises `UsageError` unless `name` can name a task."""
    from sparsehub.package.manifest import check_name  # lazy: the package floor imports torch

    try:
        check_name(name)
    except ManifestError as error:
        raise UsageError(error.problem, found=error.found, expected=error.expected) from error


def check_tag(version: str) -> None:
    """Raises `UsageError` unless `version` can name a version and cannot be mistaken for a digest."""
    from sparsehub.package.manifest import check_version

    try:
        check_version(version)
    except ManifestError as error:
        raise UsageError(error.problem, found=error.found, expected=error.expected) from error
    if _DIGEST_LIKE.fullmatch(version):
        raise UsageError("a version may not look like a digest", found=version, expected="for example 1.0.0")


def check_digest(digest: str) -> None:
    """Raises `UsageError` unless `digest` is `sha256:` and 64 lower-case hex digits."""
    from sparsehub.package.manifest import DIGEST

    if not DIGEST.fullmatch(digest):
        raise UsageError("not a digest", found=repr(digest)[:200], expected="sha256:<64 hex digits>")
