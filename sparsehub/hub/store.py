"""The hub over a folder or an object store.

blobs/sha256/<hex>       the files of packages
manifests/sha256/<hex>   sparsehub.json; <hex> is the package digest
signatures/sha256/<hex>  model.sig of the package of that digest, where it has one
tags/<name>/<version>    {"digest": "sha256:<hex>"}: written last, once, so a version is whole or absent
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from sparsehub.errors import IntegrityError, NotFoundError, SparsehubError, UsageError, VersionExistsError
from sparsehub.files import MAX_JSON_BYTES, new_folder, sha256_bytes
from sparsehub.hub.objects import Objects
from sparsehub.hub.protocol import Entries, Entry, Progress, Resolved
from sparsehub.hub.reference import check_digest, check_tag, check_task_name, parse_reference
from sparsehub.hub.tags import Tags, is_safe
from sparsehub.hub.versions import highest, version_order

if TYPE_CHECKING:
    from sparsehub.package import Manifest
    from sparsehub.package.manifest import FileRecord

MAX_SIGNATURE_BYTES = 1 << 20


class StoreHub:
    """The five verbs of `Hub` over write-once objects. It keeps no state: any number may work on one store."""

    def __init__(self, objects: Objects):
        self._objects = objects
        self._tags = Tags(objects)

    def resolve(self, reference: str) -> Resolved:
        """Make a task reference exact: see `Hub.resolve`."""
        wanted = parse_reference(reference)
        if wanted.digest is not None:
            self._manifest(wanted.name, wanted.digest)
            return Resolved(wanted.name, None, wanted.digest)
        version = wanted.version or self._highest(wanted.name)
        digest = self._tags.read(wanted.name, version)
        if digest is None:
            raise self._tags.unknown_version(wanted.name, version)
        return Resolved(wanted.name, version, digest)

    def fetch(self, resolved: Resolved, folder: Path) -> Manifest:
        """Write a package as a new folder, every byte proved: see `Hub.fetch`."""
        from sparsehub.package import MANIFEST_FILE, read_package  # lazy: the package floor imports torch
        from sparsehub.package.manifest import SIGNATURE_FILE

        manifest = self._manifest(resolved.name, resolved.digest)
        signature = self._objects.read(_path("signatures", resolved.digest), MAX_SIGNATURE_BYTES)
        with new_folder(folder) as temporary:
            for name, record in manifest.files.items():  # the manifest's parser allowed each of these names
                with (temporary / name).open("xb") as file:
                    file.writelines(self._proved_bytes(name, record))
            (temporary / MANIFEST_FILE).write_bytes(manifest.to_bytes())
            if signature is not None:
                (temporary / SIGNATURE_FILE).write_bytes(signature)
            read_package(temporary)  # the promised bytes may still be no sound package: such a one gets no name
        return manifest

    def publish(
        self, folder: Path, *, name: str | None = None, version: str | None = None, progress: Progress | None = None
    ) -> Resolved:
        """Prove a package, send its files, then its manifest, then its tag: see `Hub.publish`."""
        manifest, signature = _prepare(folder, name, version)
        resolved = Resolved(manifest.name, manifest.version, manifest.digest)
        with suppress(NotFoundError):  # a taken version is refused early; no hub yet is fine
            self._tags.holds(resolved)
        self._send_files(folder, manifest, progress)
        self._send_manifest(manifest)
        if signature is not None:
            self._send_signature(resolved, signature)
        return self._tags.write(resolved)

    def list(self) -> Entries:
        """Every version of every task, damaged ones with their error: see `Hub.list`."""
        entries = [entry for name in self._tags.names() for entry in self._entries(name)]
        return sorted(entries, key=lambda entry: (entry.name, version_order(entry.version)))

    def tag(self, name: str, tag: str, digest: str) -> Resolved:
        """Give a package that is here one more version name: see `Hub.tag`."""
        check_task_name(name)
        check_tag(tag)
        self._manifest(name, digest)
        return self._tags.write(Resolved(name, tag, digest))

    def _highest(self, name: str) -> str:
        versions = [version for version in self._tags.versions(name) if is_safe(name, version)]
        if not versions:
            raise self._tags.unknown_task(name)
        return highest(versions)

    def _manifest(self, name: str, digest: str) -> Manifest:
        """The manifest of a package of the task `name`, proved; raises `NotFoundError` and `FormatError`."""
        from sparsehub.package.manifest import parse_manifest

        check_digest(digest)
        data = self._objects.read(_path("manifests", digest), MAX_JSON_BYTES)
        if data is None:
            raise NotFoundError(f"the hub holds no package {name}@{digest}", fix="list the hub to see what it holds")
        if sha256_bytes(data) != digest:
            raise _damaged(f"the manifest of {name}", sha256_bytes(data), digest)
        manifest = parse_manifest(data)
        if manifest.name != name:
            raise NotFoundError(f"{digest} is a package of another task", found=manifest.name, expected=name)
        return manifest

    def _proved_bytes(self, name: str, record: FileRecord) -> Iterator[bytes]:
        """A file's bytes, counted and hashed as they pass; raises `IntegrityError` before one byte too many."""
        answer = self._objects.stream(_path("blobs", record.sha256))
        if answer is None:
            raise IntegrityError(f"the hub has lost {name}", expected=record.sha256, fix="publish the package again")
        count, chunks = answer
        if count == record.size:  # as the store states it; now count what really comes
            count, hashed = 0, hashlib.sha256()
            for chunk in chunks:
                count += len(chunk)
                if count > record.size:
                    break
                hashed.update(chunk)
                yield chunk
        if count != record.size:
            raise _damaged(name, f"{count} bytes", f"{record.size} bytes")
        if "sha256:" + hashed.hexdigest() != record.sha256:
            raise _damaged(name, "sha256:" + hashed.hexdigest(), record.sha256)

    def _send_files(self, folder: Path, manifest: Manifest, progress: Progress | None) -> None:
        total, sent = sum(record.size for record in manifest.files.values()), 0
        for name, record in manifest.files.items():
            data = (folder / name).read_bytes()
            if sha256_bytes(data) != record.sha256:
                raise IntegrityError(f"{name} changed while it was published", fix="publish the package again")
            if not self._objects.create(_path("blobs", record.sha256), data):
                for _ in self._proved_bytes(name, record):
                    pass  # it was here already: the tag will vouch for it, so it is proved
            sent += record.size
            if progress is not None:
                progress(sent, total)

    def _send_manifest(self, manifest: Manifest) -> None:
        if not self._objects.create(_path("manifests", manifest.digest), manifest.to_bytes()):
            self._manifest(manifest.name, manifest.digest)

    def _send_signature(self, resolved: Resolved, signature: bytes) -> None:
        path = _path("signatures", resolved.digest)
        if not self._objects.create(path, signature) and self._objects.read(path, MAX_SIGNATURE_BYTES) != signature:
            fix = "publish it without model.sig, or sign a new version"
            raise VersionExistsError(f"{resolved.pinned} has another signature already", fix=fix)

    def _entries(self, name: str) -> Entries:
        try:
            versions = self._tags.versions(name)
        except SparsehubError as error:
            return [Entry(ascii(name)[1:-1], "", error=str(error))]
        return [self._entry(name, version) for version in versions]

    def _entry(self, name: str, version: str) -> Entry:
        if not is_safe(name, version):
            return Entry(ascii(name)[1:-1], ascii(version)[1:-1], error="this name or version is not one to publish")
        digest = None
        try:
            digest = self._tags.read(name, version)
            return _described(name, version, self._manifest(name, str(digest)))
        except SparsehubError as error:
            return Entry(name, version, digest, error=str(error))


def _prepare(folder: Path, name: str | None, version: str | None) -> tuple[Manifest, bytes | None]:
    """Prove a package folder; its manifest under the name and version to publish, and its signature."""
    from sparsehub.package import read_package, rename_package
    from sparsehub.package.manifest import SIGNATURE_FILE

    if name is not None:
        check_task_name(name)
    if version is not None:
        check_tag(version)
    original = read_package(folder).manifest
    manifest = rename_package(original, name=name, version=version)
    check_tag(manifest.version)
    path = folder / SIGNATURE_FILE
    if not path.exists():
        return manifest, None
    if manifest != original:
        fix = f"publish it as {original.name}@{original.version}, or remove {SIGNATURE_FILE}"
        raise UsageError("a signed package cannot be renamed: the signature would not fit", fix=fix)
    if path.stat().st_size > MAX_SIGNATURE_BYTES:
        raise UsageError(f"{SIGNATURE_FILE} is too large", found=path.stat().st_size, expected=MAX_SIGNATURE_BYTES)
    return manifest, path.read_bytes()


def _described(name: str, version: str, manifest: Manifest) -> Entry:
    return Entry(
        name,
        version,
        manifest.digest,
        kind=manifest.task.kind,
        backbone=manifest.backbone.id,
        method=manifest.delta.method,
        density=manifest.delta.density,
        nnz=manifest.delta.nnz,
        size=len(manifest.to_bytes()) + sum(record.size for record in manifest.files.values()),
        metrics=manifest.metrics,
    )


def _path(folder: str, digest: str) -> str:
    return f"{folder}/sha256/{digest.removeprefix('sha256:')}"


def _damaged(what: str, found: str, expected: str) -> IntegrityError:
    fix = "remove it from the hub and publish the package again"
    return IntegrityError(f"{what} is damaged in the hub", found=found, expected=expected, fix=fix)
