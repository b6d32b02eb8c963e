"""BlobStoreBackend: packages in a folder or an object store.

blobs/sha256/<hex>         the files of packages
manifests/sha256/<hex>     sparsehub.json; <hex> is the package digest
signatures/sha256/<hex>    model.sig of the package of that digest, where it has one
tags/<name>/<version>      {"digest": "sha256:<hex>"}: written last, once, so a version is whole or absent
channels/<name>/<channel>  a channel's target and its history: changed by compare-and-swap
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from sparsehub.errors import FormatError, HubError, IntegrityError, UsageError
from sparsehub.files import MAX_PACKAGE_JSON_BYTES, canonical_json, sha256_bytes, strict_json
from sparsehub.hub.backend import Upload
from sparsehub.hub.blob_store import BlobStore
from sparsehub.hub.channels import MAX_CHANNEL_BYTES
from sparsehub.hub.documents import Token
from sparsehub.hub.retry import with_retries
from sparsehub.hub.transfer import FILES, Meter, damaged
from sparsehub.schema import build
from sparsehub.task_ref import check_digest

if TYPE_CHECKING:
    from sparsehub.package.manifest import FileRecord

BLOBS, MANIFESTS, SIGNATURES, TAGS, CHANNELS = "blobs", "manifests", "signatures", "tags", "channels"
MAX_TAG_BYTES = 1024
MAX_SIGNATURE_BYTES = 1 << 20
# Garbage collection (`gc.GRACE`) removes unreferenced objects a day after they were written. A publisher that finds an
# object there already may rely on it for half of that time; an older one it refreshes first.
REUSABLE = timedelta(hours=12)


@dataclass(frozen=True)
class TagRecord:
    """The content of a tag object."""

    digest: str


class BlobStoreBackend:
    """A `HubBackend` over a `BlobStore`. It keeps no state: any number may work on one store."""

    hint: str | None = None

    def __init__(self, objects: BlobStore):
        self.objects, self.where, self.requests = objects, objects.where, objects.requests

    def names(self) -> list[str]:
        return self.objects.folders(TAGS)

    def versions(self, name: str) -> list[str]:
        return self.objects.files(f"{TAGS}/{name}")

    def read_tag(self, name: str, version: str) -> str | None:
        path = f"{TAGS}/{name}/{version}"
        data = self.objects.read(path, MAX_TAG_BYTES)
        if data is None:
            return None
        try:
            record = build(TagRecord, strict_json(data, path), path, IntegrityError)
            check_digest(record.digest)
        except (FormatError, UsageError) as error:
            fix = "remove it from the hub and tag the digest again"
            raise IntegrityError(f"the tag {path} is damaged", found=str(error), fix=fix) from error
        return record.digest

    def create_tag(self, name: str, version: str, digest: str) -> bool:
        data = canonical_json({"digest": digest})
        # Where an answer is lost, the retry finds a tag; the caller then sees that it is that of our own digest.
        return with_retries(lambda: self.objects.create(f"{TAGS}/{name}/{version}", data))

    def read_manifest(self, name: str, digest: str) -> bytes | None:
        return self.objects.read(object_path(MANIFESTS, digest), MAX_PACKAGE_JSON_BYTES)

    def open_file(
        self, name: str, digest: str, file: str, record: FileRecord, start: int, stop: int
    ) -> Iterator[bytes]:
        whole = (start, stop) == (0, record.size)  # stores answer a range of an object that is empty with an error
        answer = self.objects.stream(object_path(BLOBS, record.sha256), start, None if whole else stop)
        if answer is None:
            raise IntegrityError(f"the hub has lost {file}", expected=record.sha256, fix="publish the package again")
        if answer[0] != record.size:
            raise damaged(file, f"{answer[0]} bytes", f"{record.size} bytes")
        return answer[1]

    def upload(self, upload: Upload, meter: Meter) -> None:
        self.objects.prepare()
        with ThreadPoolExecutor(FILES) as workers:
            there = workers.map(lambda item: self._send(upload.folder / item[0], item[1], meter), upload.files.items())
            reused = [name for name, was_there in zip(upload.files, there, strict=True) if was_there]
        self._store(object_path(MANIFESTS, upload.manifest.digest), upload.manifest.to_bytes(), "the manifest")
        for name in reused:  # another process may have collected them before they were refreshed
            record = upload.files[name]
            if self.objects.changed(object_path(BLOBS, record.sha256)) is None:
                self._send(upload.folder / name, record, Meter(record.size, None))

    def read_signature(self, name: str, digest: str) -> bytes | None:
        return self.objects.read(object_path(SIGNATURES, digest), MAX_SIGNATURE_BYTES)

    def write_signature(self, name: str, digest: str, data: bytes) -> bool:
        path = object_path(SIGNATURES, digest)
        if with_retries(lambda: self.objects.create(path, data)):
            return True
        if (found := self.objects.read(path, MAX_SIGNATURE_BYTES)) is not None:
            self.objects.refresh(path, found)
        return False

    def channels(self, name: str) -> list[str]:
        return self.objects.files(f"{CHANNELS}/{name}")

    def read_channel(self, name: str, channel: str) -> tuple[bytes, Token] | None:
        return self.objects.read_versioned(f"{CHANNELS}/{name}/{channel}", MAX_CHANNEL_BYTES)

    def write_channel(self, name: str, channel: str, data: bytes, token: Token | None) -> bool:
        return self.objects.replace(f"{CHANNELS}/{name}/{channel}", data, token)

    def _send(self, file: Path, record: FileRecord, meter: Meter) -> bool:
        """Upload a file; True where it was there already."""
        path = object_path(BLOBS, record.sha256)
        changed = self.objects.changed(path)
        if changed is None:
            self.objects.send(path, file, record.sha256, meter)
            return False
        self._verify_stored(file.name, path, record)  # the version will promise these bytes
        if changed < datetime.now(UTC) - REUSABLE:
            self.objects.refresh(path, file.read_bytes())
        meter.add(record.size)
        return True

    def _store(self, path: str, data: bytes, what: str) -> None:
        """Store small bytes that may be there already: then they must be the same."""
        if not with_retries(lambda: self.objects.create(path, data)):
            found = self.objects.read(path, len(data))
            if found != data:
                raise damaged(what, sha256_bytes(found or b""), sha256_bytes(data))
            self.objects.refresh(path, data)

    def _verify_stored(self, name: str, path: str, record: FileRecord) -> None:
        """Read and hash what is stored already; raises `IntegrityError` unless it is what the record says."""
        answer = self.objects.stream(path)
        if answer is None:
            raise HubError(f"{name} vanished from the hub while it was published", fix="publish the package again")
        count, hashed = answer[0], hashlib.sha256()
        for chunk in answer[1] if count == record.size else ():
            hashed.update(chunk)
        if count != record.size or "sha256:" + hashed.hexdigest() != record.sha256:
            raise damaged(name, f"sha256:{hashed.hexdigest()} of {count} bytes", f"{record.sha256} of {record.size}")


def object_path(folder: str, digest: str) -> str:
    """The path of the object with a digest."""
    return f"{folder}/sha256/{digest.removeprefix('sha256:')}"
