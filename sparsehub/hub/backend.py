"""HubBackend: the storage of a hub, which a folder, a bucket and the Hugging Face Hub provide and `PackageHub` uses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from sparsehub.errors import VersionExistsError
from sparsehub.hub.documents import Token

if TYPE_CHECKING:
    from sparsehub.hub.transfer import Meter
    from sparsehub.package.manifest import FileRecord, Manifest


@dataclass(frozen=True)
class Upload:
    """A validated package that `PackageHub.publish` hands to a backend."""

    folder: Path  # with the package's files
    manifest: Manifest  # as it is to be published, perhaps under another name or version than in `folder`
    signature: bytes | None  # of exactly this manifest's bytes

    @property
    def files(self) -> Mapping[str, FileRecord]:
        return self.manifest.files

    @property
    def size(self) -> int:
        """Bytes of all files but the manifest and the signature."""
        return sum(record.size for record in self.files.values())


class HubBackend(Protocol):
    """Storage for packages. It is given validated names and digests, and returns bytes that nothing has verified.

    Reading what is not there gives None or an empty list. Every method but `open_file` retries network failures;
    raises `UnreachableError` in the end, `HubError` for other failures, `NotFoundError` where there is no hub.
    """

    where: str  # the location as the user wrote it
    requests: int  # the most that may run at once
    hint: str | None  # advice for an error that says that something is not here

    def names(self) -> list[str]:
        """Every task, badly named ones included."""

    def versions(self, name: str) -> list[str]:
        """Every version of a task, badly named ones included."""

    def read_tag(self, name: str, version: str) -> str | None:
        """The digest of a version; raises `IntegrityError` where what is there cannot be one."""

    def create_tag(self, name: str, version: str, digest: str) -> bool:
        """Make a version, all at once and for good; False where there is one already, which is left alone."""

    def read_manifest(self, name: str, digest: str) -> bytes | None:
        """What is stored as the manifest of that digest; raises `IntegrityError` where it is absurdly large."""

    def open_file(
        self, name: str, digest: str, file: str, record: FileRecord, start: int, stop: int
    ) -> Iterator[bytes]:
        """The bytes of a package's file from `start` to `stop`, or whatever comes.

        Raises `IntegrityError` for a file that is lost, or whose size is stated to be another.
        """

    def upload(self, upload: Upload, meter: Meter) -> None:
        """Send the files and then the manifest. What is there already is not sent again, but verified."""

    def read_signature(self, name: str, digest: str) -> bytes | None:
        """What is stored as the package's signature."""

    def write_signature(self, name: str, digest: str, data: bytes) -> bool:
        """Store a signature; False where there is one already, which is left alone."""

    def channels(self, name: str) -> list[str]:
        """Every channel of a task, badly named ones included."""

    def read_channel(self, name: str, channel: str) -> tuple[bytes, Token] | None:
        """What is stored as a channel, and the token that `write_channel` compares."""

    def write_channel(self, name: str, channel: str, data: bytes, token: Token | None) -> bool:
        """Replace what `token` stands for, None for nothing; False where something else is there by now."""


def version_taken(name: str, version: str, found: str, expected: str) -> VersionExistsError:
    """The error for a version under which another package was published: a version never changes."""
    fix = "publish under a new version"
    problem = f"{name}@{version} was published before and is another package"
    return VersionExistsError(problem, found=found, expected=expected, fix=fix)
