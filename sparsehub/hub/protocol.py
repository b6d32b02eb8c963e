"""What every hub can do: five verbs, whatever the backend behind them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from sparsehub.task_ref import TaskRef

if TYPE_CHECKING:
    from sparsehub.package import Manifest

Progress = Callable[[int, int], None]
"""Called with the bytes that are done and the bytes of all; from any thread, one call at a time."""


@dataclass(frozen=True)
class Resolved:
    """A reference made exact. version: None where the reference named a digest; channel: where it named one."""

    name: str
    version: str | None
    digest: str
    channel: str | None = field(default=None, compare=False)

    @property
    def pinned(self) -> str:
        """The reference that always means these bytes, as text."""
        return str(self.reference)

    @property
    def reference(self) -> TaskRef:
        """The reference that always means these bytes."""
        return TaskRef(self.name, digest=self.digest)


@dataclass(frozen=True)
class HubEntry:
    """One version as a listing shows it. size: bytes of all the package's files; channels: those that point at it.

    A version that cannot be read is listed too: `error` then says why, and only name and version (and the digest,
    where its tag could be read) are meaningful.
    """

    name: str
    version: str
    digest: str | None = None
    kind: str = ""
    backbone: str = ""
    fingerprint: str = ""
    method: str = ""
    density: float = 0.0
    nnz: int = 0
    size: int = 0
    metrics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    channels: tuple[str, ...] = ()
    error: str | None = None


Entries = list[HubEntry]


class Hub(Protocol):
    """A place where packages live. A published version never changes, and no reader ever sees half of one."""

    def resolve(self, reference: str | TaskRef) -> Resolved:
        """Make a task reference exact; raises `UsageError` for a malformed one and `NotFoundError`."""

    def fetch(
        self, resolved: Resolved, folder: Path, *, progress: Progress | None = None, scratch: Path | None = None
    ) -> Manifest:
        """Write the package as the new folder `folder`, every byte hashed as it comes and proved afterwards.

        scratch: a folder on the same disk in which an interrupted fetch leaves what it has, for the next one.
        Raises `NotFoundError`, `FormatError` (`IntegrityError` for changed bytes), and `UsageError` where `folder`
        exists already. Whatever it raises, nothing is left behind but in `scratch`.
        """

    def publish(
        self,
        folder: str | Path,
        *,
        name: str | None = None,
        version: str | None = None,
        progress: Progress | None = None,
    ) -> Resolved:
        """Publish a package folder, under another name or version where these are given; `latest` follows.

        The same package again is fine; raises `VersionExistsError` where the version is another package's already,
        and `FormatError` for a folder that is not a sound package.
        """

    def list(self, name: str | None = None, *, newest: bool = False) -> Entries:
        """Every version of every task, or of the task `name`, by name and then from the lowest version to the highest.

        newest: of each task only what its bare name means. The cost grows with the versions listed, no others.
        """

    def tag(self, name: str, tag: str, digest: str, *, expected: str | None = None) -> Resolved:
        """Give a package of the task `name` one more version name, once; or move a channel to it.

        A word without digits is a channel. expected: the digest that the channel must point at; raises
        `ConflictError` otherwise. Raises `NotFoundError`, and `VersionExistsError` where the version is taken.
        """
