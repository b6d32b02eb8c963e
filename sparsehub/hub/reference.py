"""Task references: how a user names a task, one of its versions, a channel, or its very bytes."""

from __future__ import annotations

import re
from dataclasses import dataclass

from sparsehub.errors import ManifestError, UsageError

FORMS = "name, name@version, name@channel or name@sha256:<64 hex digits>"
LATEST = "latest"
_DIGEST_LIKE = re.compile(r"(?i)sha256.*|[0-9a-f]{64}")
_CHANNEL = re.compile(r"[a-z](?:[a-z-]{0,30}[a-z])?")


@dataclass(frozen=True)
class Reference:
    """A parsed task reference. At most one of version, channel and digest is given; none means the channel `latest`."""

    name: str
    version: str | None = None
    channel: str | None = None
    digest: str | None = None

    def __str__(self) -> str:
        pin = self.version or self.channel or self.digest
        return f"{self.name}@{pin}" if pin else self.name


def parse_reference(text: str) -> Reference:
    """Parse `name`, `name@version`, `name@channel` or `name@sha256:<64 hex>`; raises `UsageError`."""
    name, separator, pin = text.partition("@")
    try:
        check_task_name(name)
        if not separator:
            return Reference(name)
        if pin.startswith("sha256:"):
            check_digest(pin)
            return Reference(name, digest=pin)
        if is_channel(pin):
            return Reference(name, channel=pin)
        check_tag(pin)
        return Reference(name, version=pin)
    except UsageError as error:
        raise UsageError(f"not a task reference: {error.problem}", found=repr(text)[:200], expected=FORMS) from error


def is_channel(word: str) -> bool:
    """Whether `word` names a channel, which may move, and no version, which never does: it has no digit."""
    return bool(_CHANNEL.fullmatch(word)) and not _DIGEST_LIKE.fullmatch(word)


def check_task_name(name: str) -> None:
    """Raises `UsageError` unless `name` can name a task."""
    from sparsehub.package.manifest import check_name  # lazy: the package floor imports numpy

    try:
        check_name(name)
    except ManifestError as error:
        raise UsageError(error.problem, found=error.found, expected=error.expected) from error


def check_tag(version: str) -> None:
    """Raises `UsageError` unless `version` can name a version and cannot be taken for a digest or a channel."""
    from sparsehub.package.manifest import check_version

    try:
        check_version(version)
    except ManifestError as error:
        raise UsageError(error.problem, found=error.found, expected=error.expected) from error
    if _DIGEST_LIKE.fullmatch(version):
        raise UsageError("a version may not look like a digest", found=version, expected="for example 1.0.0")
    if not any(character.isdigit() for character in version):
        fix = "publish it under a numbered version and let a channel point at it: sparsehub tag"
        raise UsageError("a version has a digit, other words are channels", found=version, expected="1.0.0", fix=fix)


def check_digest(digest: str) -> None:
    """Raises `UsageError` unless `digest` is `sha256:` and 64 lower-case hex digits."""
    from sparsehub.package.manifest import DIGEST

    if not DIGEST.fullmatch(digest):
        raise UsageError("not a digest", found=repr(digest)[:200], expected="sha256:<64 hex digits>")


def is_safe(name: str, version: str = "0") -> bool:
    """Whether this name and version could have been published; anybody may have put other files there."""
    try:
        check_task_name(name)
        check_tag(version)
    except UsageError:
        return False
    return True
