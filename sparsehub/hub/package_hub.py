"""The five verbs, the same for every backend: what is proved, in which order, and what is said when it fails."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sparsehub.errors import HubError, IntegrityError, NotFoundError, UsageError, VersionExistsError
from sparsehub.files import new_folder, sha256_bytes
from sparsehub.hub.backend import HubBackend, Upload, taken
from sparsehub.hub.channels import Channel, change_channel, follow, point_at, read_channel, step_back
from sparsehub.hub.listing import list_entries, unknown_task, unknown_version
from sparsehub.hub.protocol import Entries, Progress, Resolved
from sparsehub.hub.transfer import Download, Meter, damaged, download_all, download_bytes
from sparsehub.hub.versions import highest
from sparsehub.task_ref import (
    LATEST,
    TaskRef,
    check_digest,
    check_tag,
    check_task_name,
    is_channel,
    is_safe,
    reference_of,
)

if TYPE_CHECKING:
    from sparsehub.package import Manifest


@dataclass(frozen=True)
class PackagePreview:
    """A version without its weights. card: as text; signature: as stored; both None where there is none."""

    manifest: Manifest
    card: str | None
    signature: bytes | None


class PackageHub:
    """A `Hub` over any `HubBackend`. It keeps no state: any number may work on one backend."""

    def __init__(self, backend: HubBackend):
        self.backend = backend

    @property
    def where(self) -> str:
        """The hub's location, as its user wrote it."""
        return self.backend.where

    def resolve(self, reference: str | TaskRef) -> Resolved:
        """Make a task reference exact: see `Hub.resolve`."""
        wanted = reference_of(reference)
        if wanted.digest is not None:
            self.manifest(wanted.name, wanted.digest)
            return Resolved(wanted.name, None, wanted.digest)
        if wanted.version is not None:
            return self.resolve_version(wanted.name, wanted.version)
        channel = wanted.channel or LATEST
        found = read_channel(self.backend, wanted.name, channel)
        if found is not None:
            return Resolved(wanted.name, found.target.version, found.target.digest, channel)
        if wanted.channel not in (None, LATEST):
            raise unknown_version(self.backend, wanted.name, channel)
        return self.resolve_version(wanted.name, self._highest(wanted.name))

    def fetch(
        self, resolved: Resolved, folder: Path, *, progress: Progress | None = None, scratch: Path | None = None
    ) -> Manifest:
        """Write a package as a new folder, every byte proved: see `Hub.fetch`."""
        from sparsehub.package import MANIFEST_FILE, validate_package
        from sparsehub.package.manifest import SIGNATURE_FILE

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
            validate_package(temporary)  # the promised bytes may still be no sound package: such a one gets no name
        return manifest

    def publish(
        self,
        folder: str | Path,
        *,
        name: str | None = None,
        version: str | None = None,
        progress: Progress | None = None,
    ) -> Resolved:
        """Prove a package, send its files, then its manifest, then its tag: see `Hub.publish`."""
        upload = _prepare(Path(folder), name, version)
        manifest = upload.manifest
        resolved = Resolved(manifest.name, manifest.version, manifest.digest)
        with suppress(NotFoundError):  # a taken version is refused early; no hub yet is fine
            self._holds(resolved)
        meter = Meter(upload.size, progress)
        self.backend.upload(upload, meter)
        if upload.signature is not None:
            self.attach(resolved, upload.signature)
        self._create_tag(resolved)
        change_channel(self.backend, resolved.name, LATEST, follow(manifest.version, resolved.digest, _is_higher))
        return resolved

    def list(self, name: str | None = None, *, newest: bool = False) -> Entries:
        """Every version of every task, damaged ones with their error: see `Hub.list`."""
        return list_entries(self, name, newest)

    def tag(self, name: str, tag: str, digest: str, *, expected: str | None = None) -> Resolved:
        """Give a package that is here one more version name, or move a channel to it: see `Hub.tag`."""
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
        now = change_channel(self.backend, name, channel, step_back(name, channel))
        assert now is not None, "a step back always gives a channel"
        return Resolved(name, now.target.version, now.target.digest, channel)

    def channels(self, name: str) -> dict[str, Channel]:
        """Where each channel of a task points; those that cannot be read are left out."""
        found = {}
        for channel in filter(is_channel, self.backend.channels(name)):
            with suppress(IntegrityError):
                if (current := read_channel(self.backend, name, channel)) is not None:
                    found[channel] = current
        return found

    def resolve_version(self, name: str, version: str) -> Resolved:
        """The digest of a version; raises `NotFoundError`."""
        digest = self.backend.read_tag(name, version)
        if digest is None:
            raise unknown_version(self.backend, name, version)
        return Resolved(name, version, digest)

    def manifest(self, name: str, digest: str) -> Manifest:
        """The manifest of a package of the task `name`, proved; raises `NotFoundError` and `FormatError`."""
        from sparsehub.package.manifest import parse_manifest

        check_digest(digest)
        data = self.backend.read_manifest(name, digest)
        if data is None:
            raise NotFoundError(f"the hub holds no package {name}@{digest}", fix="list the hub to see what it holds")
        if sha256_bytes(data) != digest:
            raise damaged(f"the manifest of {name}", sha256_bytes(data), digest)
        manifest = parse_manifest(data)
        if manifest.name != name:
            raise NotFoundError(f"{digest} is a package of another task", found=manifest.name, expected=name)
        return manifest

    def peek(self, resolved: Resolved) -> PackagePreview:
        """Manifest, card and signature of a version, proved but for the signature; no weight is fetched."""
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
        """Store the signature of a package that is here; raises `VersionExistsError` where it has another one."""
        backend, name, digest = self.backend, resolved.name, resolved.digest
        if not backend.write_signature(name, digest, signature) and backend.read_signature(name, digest) != signature:
            fix = "publish it without model.sig, or sign a new version"
            raise VersionExistsError(f"{resolved.pinned} has another signature already", fix=fix)

    def _highest(self, name: str) -> str:
        found = self.backend.versions(name)
        versions = [version for version in found if is_safe(name, version)]
        if not versions:
            raise unknown_task(self.backend, name)
        return highest(versions)

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
        if not self.backend.create_tag(resolved.name, version, resolved.digest) and not self._holds(resolved):
            path = f"{resolved.name}@{version}"
            raise HubError(f"{path} cannot be written: something else is there", fix="remove it from the hub")
        return resolved

    def _holds(self, resolved: Resolved) -> bool:
        """Whether the version is this very package already; raises `VersionExistsError` where it is another."""
        there = self.backend.read_tag(resolved.name, str(resolved.version))
        if there is not None and there != resolved.digest:
            raise taken(resolved.name, str(resolved.version), there, resolved.digest)
        return there is not None


def _is_higher(version: str, other: str) -> bool:
    return version != other and highest([version, other]) == version


def _prepare(folder: Path, name: str | None, version: str | None) -> Upload:
    """Prove a package folder; its manifest under the name and version to publish, and its signature."""
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
    if not os.path.lexists(path):
        return Upload(folder, manifest, None)
    if manifest != original:
        fix = f"publish it as {original.name}@{original.version}, or remove {SIGNATURE_FILE}"
        raise UsageError("a signed package cannot be renamed: the signature would not fit", fix=fix)
    return Upload(folder, manifest, path.read_bytes())
