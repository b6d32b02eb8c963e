"""PackageHub: the hub that the command line and endpoints use; the same checks in the same order for every backend."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sparsehub.errors import HubError, NotFoundError, UsageError, VersionExistsError
from sparsehub.files import new_folder
from sparsehub.hub.backend import HubBackend, Upload, version_taken
from sparsehub.hub.channels import Channel, change_channel, follow, point_at, read_channels, step_back
from sparsehub.hub.listing import Entries, list_entries
from sparsehub.hub.resolver import Resolved, fetch_manifest, resolve, resolve_version
from sparsehub.hub.transfer import Download, Meter, Progress, download_all, download_bytes
from sparsehub.hub.versions import highest
from sparsehub.task_ref import LATEST, TaskRef, check_tag, check_task_name, is_channel

if TYPE_CHECKING:
    from sparsehub.package import Manifest


@dataclass(frozen=True)
class PackagePreview:
    """A version without its weights, as `sparsehub show` presents it."""

    manifest: Manifest
    card: str | None  # Markdown; None where the package has no card
    signature: bytes | None  # as stored, not verified; None where the package is not signed


class PackageHub:
    """A place where packages live, over any `HubBackend`; it keeps no state, so any number may work on one backend.

    Its five verbs are resolve, fetch, publish, list and tag. A published version never changes, and no reader ever
    sees half of one.
    """

    def __init__(self, backend: HubBackend):
        self.backend = backend

    @property
    def where(self) -> str:
        """The hub's location, as its user wrote it."""
        return self.backend.where

    def resolve(self, reference: str | TaskRef) -> Resolved:
        """Make a task reference exact; raises `UsageError` for a malformed one and `NotFoundError`."""
        return resolve(self.backend, reference)

    def fetch(
        self, resolved: Resolved, folder: Path, *, progress: Progress | None = None, scratch: Path | None = None
    ) -> Manifest:
        """Write a package as the new folder `folder`: every byte hashed once, as it comes; then validated.

        scratch: a folder on the same disk in which an interrupted fetch leaves what it has, for the next one.
        Raises `NotFoundError`, `FormatError` (`IntegrityError` for changed bytes), and `UsageError` where `folder`
        exists already. Whatever it raises, nothing is left behind but in `scratch`.
        """
        from sparsehub.package.manifest import MANIFEST_FILE, SIGNATURE_FILE
        from sparsehub.package.validation import validate_contents

        name, digest = resolved.name, resolved.digest
        manifest = self.manifest(name, digest)
        signature = self.backend.read_signature(name, digest)
        if scratch is not None:
            self._download(manifest, scratch, progress)
        with new_folder(folder) as temporary:
            if scratch is None:
                self._download(manifest, temporary, progress)
            else:
                for file in manifest.files:
                    (scratch / file).rename(temporary / file)
            (temporary / MANIFEST_FILE).write_bytes(manifest.to_bytes())
            if signature is not None:
                (temporary / SIGNATURE_FILE).write_bytes(signature)
            validate_contents(temporary, manifest)  # the promised bytes may be no valid package: that gets no name
        return manifest

    def publish(
        self,
        folder: str | Path,
        *,
        name: str | None = None,
        version: str | None = None,
        progress: Progress | None = None,
    ) -> Resolved:
        """Publish a package folder, under another name or version where these are given; `latest` follows.

        The package is validated; then its files are sent, its manifest, its tag. The same package again is fine;
        raises `VersionExistsError` where the version is another package's already, and `FormatError` for a folder
        that is not a valid package.
        """
        with tempfile.TemporaryDirectory(prefix="sparsehub-publish-") as scratch:
            return self._publish(_validated_upload(Path(folder), name, version, Path(scratch)), progress)

    def _publish(self, upload: Upload, progress: Progress | None) -> Resolved:
        manifest = upload.manifest
        resolved = Resolved(manifest.name, manifest.version, manifest.digest)
        with suppress(NotFoundError):  # a taken version is refused early; no hub yet is fine
            self._is_published(resolved)
        meter = Meter(upload.size, progress)
        self.backend.upload(upload, meter)
        if upload.signature is not None:
            self.attach(resolved, upload.signature)
        self._create_tag(resolved)
        change_channel(self.backend, resolved.name, LATEST, follow(manifest.version, resolved.digest, _is_higher))
        return resolved

    def list(self, name: str | None = None, *, newest: bool = False) -> Entries:
        """Every version of every task, or of the task `name`, by name and then from the lowest version to the highest.

        newest: of each task only what its bare name means. The cost grows with the versions listed, no others.
        A damaged version is listed with its error.
        """
        return list_entries(self.backend, name, newest)

    def tag(self, name: str, tag: str, digest: str, *, expected: str | None = None) -> Resolved:
        """Give a package of the task `name` one more version name, once; or move a channel to it.

        A word without digits is a channel. expected: the digest that the channel must point at; raises
        `ConflictError` otherwise. Raises `NotFoundError`, and `VersionExistsError` where the version is taken.
        """
        check_task_name(name)
        manifest = self.manifest(name, digest)
        if is_channel(tag):
            change_channel(self.backend, name, tag, point_at(manifest.version, digest, expected))
            return Resolved(name, manifest.version, digest, tag)
        check_tag(tag)
        if expected is not None:
            raise UsageError("a version never moves, so nothing can be expected of it", found=tag)
        return self._create_tag(Resolved(name, tag, digest))

    def rollback(self, name: str, channel: str) -> Resolved:
        """Move a channel back to what it pointed at before, and again to what was before that.

        Raises `NotFoundError`, and `UsageError` where there is nothing before.
        """
        check_task_name(name)
        if not is_channel(channel):
            raise UsageError("not a channel", found=channel, expected="a word without digits: latest, stable, canary")
        try:
            now = change_channel(self.backend, name, channel, step_back(name, channel))
        except NotFoundError:
            if known := list(self.channels(name)):
                expected = f"one of {', '.join(sorted(known))}"
                raise NotFoundError(f"{name} has no channel {channel!r}", expected=expected) from None
            raise
        assert now is not None, "a step back always gives a channel"
        return Resolved(name, now.target.version, now.target.digest, channel)

    def channels(self, name: str) -> dict[str, Channel]:
        """Where each channel of a task points; those that cannot be read are left out."""
        return read_channels(self.backend, name)

    def resolve_version(self, name: str, version: str) -> Resolved:
        """The digest of a version; raises `NotFoundError`."""
        return resolve_version(self.backend, name, version)

    def manifest(self, name: str, digest: str) -> Manifest:
        """The manifest of a package of the task `name`, validated; raises `NotFoundError` and `FormatError`."""
        return fetch_manifest(self.backend, name, digest)

    def peek(self, resolved: Resolved) -> PackagePreview:
        """Manifest and card of a version, validated, and its signature, not verified; no weight is fetched."""
        from sparsehub.package.manifest import CARD_FILE
        from sparsehub.package.validation import validate_attachment

        manifest = self.manifest(resolved.name, resolved.digest)
        signature = self.backend.read_signature(resolved.name, resolved.digest)
        if CARD_FILE not in manifest.files:
            return PackagePreview(manifest, None, signature)
        card = download_bytes(self._file(manifest, CARD_FILE))
        validate_attachment(CARD_FILE, card)
        return PackagePreview(manifest, card.decode(), signature)

    def attach(self, resolved: Resolved, signature: bytes) -> None:
        """Store the signature of a published package; raises `VersionExistsError` where it has another one."""
        backend, name, digest = self.backend, resolved.name, resolved.digest
        if not backend.write_signature(name, digest, signature) and backend.read_signature(name, digest) != signature:
            fix = "publish it without model.sig, or sign a new version"
            raise VersionExistsError(f"{resolved.pinned} has another signature already", fix=fix)

    def _download(self, manifest: Manifest, folder: Path, progress: Progress | None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        total = sum(record.size for record in manifest.files.values())
        free = shutil.disk_usage(folder).free
        if total > free:
            raise UsageError("the disk has no room for this package", found=f"{free} bytes free", expected=f"{total}")
        files = [self._file(manifest, file) for file in manifest.files]  # its parser allowed each of these names
        download_all(files, folder, Meter(total, progress))

    def _file(self, manifest: Manifest, file: str) -> Download:
        record, digest = manifest.files[file], manifest.digest

        def chunks(start: int, stop: int) -> Iterator[bytes]:
            return self.backend.open_file(manifest.name, digest, file, record, start, stop)

        return Download(file, record, chunks)

    def _create_tag(self, resolved: Resolved) -> Resolved:
        version = str(resolved.version)
        if not self.backend.create_tag(resolved.name, version, resolved.digest) and not self._is_published(resolved):
            path = f"{resolved.name}@{version}"
            raise HubError(f"{path} cannot be written: something else is there", fix="remove it from the hub")
        return resolved

    def _is_published(self, resolved: Resolved) -> bool:
        """Whether the version is this package already; raises `VersionExistsError` where it is another."""
        there = self.backend.read_tag(resolved.name, str(resolved.version))
        if there is not None and there != resolved.digest:
            raise version_taken(resolved.name, str(resolved.version), there, resolved.digest)
        return there is not None


def _is_higher(version: str, other: str) -> bool:
    return version != other and highest([version, other]) == version


def _validated_upload(folder: Path, name: str | None, version: str | None, scratch: Path) -> Upload:
    """Validate a package folder; returns it with its manifest under the name and version to publish.

    scratch: an empty folder for what says another name or version than the package's own.
    """
    from sparsehub.package import rename_package, validate_package
    from sparsehub.package.manifest import SIGNATURE_FILE

    if name is not None:
        check_task_name(name)
    if version is not None:
        check_tag(version)
    original = validate_package(folder)
    manifest = rename_package(original, name=name, version=version)
    check_tag(manifest.version)
    path = folder / SIGNATURE_FILE
    if manifest == original:
        return Upload(folder, manifest, path.read_bytes() if os.path.lexists(path) else None)
    if os.path.lexists(path):
        fix = f"publish it as {original.name}@{original.version}, or remove {SIGNATURE_FILE}"
        raise UsageError("a signed package cannot be renamed: the signature would not fit", fix=fix)
    from sparsehub.package.writer import rename_into  # lazy: torch, which nothing else of publishing needs

    return Upload(scratch, rename_into(scratch, folder, manifest), None)
