"""BlobStore: objects by path in any store that obstore knows; `BlobStoreBackend` keeps packages in it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    GenericError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from obstore.store import ObjectStore

from sparsehub.errors import HubError, IntegrityError, UnreachableError
from sparsehub.files import CHUNK, sha256_bytes
from sparsehub.hub.documents import MAX_DOCUMENT_BYTES, Token

if TYPE_CHECKING:
    from sparsehub.hub.transfer import Meter

# The metadata servers of clouds, which hand out credentials: the last place that is tried. Elsewhere nothing answers.
_ASKED_FOR_CREDENTIALS = ("http://169.254.169.254/", "http://metadata.google.internal/")
_NO_BUCKET = ("NoSuchBucket", "ContainerNotFound")  # S3 and Google, Azure
PART = 8 << 20  # bytes of one request when a large file is sent
PARTS = 4  # at once


class BlobStore:
    """Objects of an obstore store. Each is created whole, once; only channels and catalogues are replaced."""

    requests = 16  # the most that may run at once
    remote = True  # so that an unexplained failure is worth another try

    def __init__(self, store: Callable[[], ObjectStore], where: str):
        self._store, self.where = store, where

    def prepare(self) -> None:
        """Make what must be there before the first write: nothing, in a bucket."""

    def create(self, path: str, data: bytes) -> bool:
        """Write an object; False where there is one already, which is left alone. Durable when it returns."""
        with self.errors_at(path):
            try:
                obstore.put(self._store(), path, data, mode="create")
            except AlreadyExistsError:
                return False
            return True

    def send(self, path: str, file: Path, digest: str, meter: Meter) -> None:
        """Upload a file as an object, in parts where it is large; its bytes are hashed as they are sent.

        Raises `IntegrityError`, and leaves no object, where they no longer have the digest.
        """
        with self.errors_at(path):
            if file.stat().st_size > PART:
                parts = _hashed_parts(file, digest, meter)
                obstore.put(self._store(), path, parts, use_multipart=True, chunk_size=PART, max_concurrency=PARTS)
                return
            data = file.read_bytes()
            if sha256_bytes(data) != digest:
                raise _changed(file)
            obstore.put(self._store(), path, data, use_multipart=False)
            meter.add(len(data))

    def changed(self, path: str) -> datetime | None:
        """When an object was last written; None where there is none."""
        with self.errors_at(path):
            try:
                return obstore.head(self._store(), path)["last_modified"]
            except FileNotFoundError:
                return None

    def stream(self, path: str, start: int = 0, stop: int | None = None) -> tuple[int, Iterator[bytes]] | None:
        """The stated size, and the bytes from `start` to `stop` in chunks; None where there is no such object."""
        options = {} if stop is None else {"range": (start, stop)}
        with self.errors_at(path):
            try:
                answer = obstore.get(self._store(), path, options=options)  # type: ignore[arg-type]
            except FileNotFoundError:
                return None
        return answer.meta["size"], self._chunks(path, answer.stream(min_chunk_size=CHUNK))

    def read(self, path: str, limit: int) -> bytes | None:
        """A small object whole; None where there is none; raises `IntegrityError` beyond `limit` bytes."""
        found = self.read_versioned(path, limit)
        return None if found is None else found[0]

    def read_versioned(self, path: str, limit: int) -> tuple[bytes, Token] | None:
        """A small object and its version, which `replace` compares; None where there is none."""
        with self.errors_at(path):
            try:
                answer = obstore.get(self._store(), path)
            except FileNotFoundError:
                return None
            token = {name: value for name in ("e_tag", "version") if (value := answer.meta[name]) is not None}  # type: ignore[literal-required]
            return _limited(path, answer.meta["size"], answer.stream(min_chunk_size=CHUNK), limit), token

    def replace(self, path: str, data: bytes, token: Token | None) -> bool:
        """Write an object if its version is still `token`, None for no object yet; False where it is another by now."""
        if token is None:
            return self.create(path, data)
        with self.errors_at(path):
            try:
                obstore.put(self._store(), path, data, mode=token)
            except PreconditionError:
                return False
            return True

    def folders(self, path: str) -> list[str]:
        """The names of the folders right under `path`, sorted; none where there is no such folder."""
        with self.errors_at(path):
            answer = obstore.list_with_delimiter(self._store(), path)
        return sorted(prefix.rpartition("/")[2] for prefix in answer["common_prefixes"])

    def files(self, path: str) -> list[str]:
        """The names of the objects right under `path`, sorted; none where there is no such folder."""
        with self.errors_at(path):
            answer = obstore.list_with_delimiter(self._store(), path)
        return sorted(entry["path"].rpartition("/")[2] for entry in answer["objects"])

    def ages(self, path: str) -> Iterator[tuple[str, int, datetime]]:
        """Path, size in bytes and last change of every object under `path`."""
        with self.errors_at(path):
            for batch in obstore.list(self._store(), path):
                yield from ((entry["path"], entry["size"], entry["last_modified"]) for entry in batch)

    def refresh(self, path: str, data: bytes) -> None:
        """Make an object new for garbage collection, by writing the bytes that it has again."""
        with self.errors_at(path):
            obstore.put(self._store(), path, data)

    def delete(self, path: str) -> None:
        """Remove an object."""
        with self.errors_at(path):
            obstore.delete(self._store(), path)

    @contextmanager
    def errors_at(self, path: str) -> Iterator[None]:
        """Turn what obstore and the system raise in a block into our own errors."""
        try:
            yield
        except (BaseError, OSError, ValueError, NotImplementedError) as error:
            raise _explained(error, path, self.where, self.remote) from error

    def _chunks(self, path: str, stream: Iterator[bytes]) -> Iterator[bytes]:
        with self.errors_at(path):
            yield from stream


class ObjectDocument:
    """An object in a store, as a document that `change` can write."""

    def __init__(self, objects: BlobStore, path: str):
        self._objects, self._path, self.where = objects, path, f"{objects.where}/{path}"

    def read(self) -> tuple[bytes, Token] | None:
        return self._objects.read_versioned(self._path, MAX_DOCUMENT_BYTES)

    def replace(self, data: bytes, token: Token | None) -> bool:
        self._objects.prepare()
        return self._objects.replace(self._path, data, token)


def _limited(path: str, size: int, stream: Iterator[bytes], limit: int) -> bytes:
    data = bytearray()
    for chunk in stream if size <= limit else ():
        data += chunk
        if len(data) > limit:
            break
    if max(size, len(data)) > limit:
        found = f"{max(size, len(data))} bytes"
        raise IntegrityError(f"{path} in the hub is too large", found=found, expected=f"at most {limit}")
    return bytes(data)


def _hashed_parts(path: Path, digest: str, meter: Meter) -> Iterator[bytes]:
    """A large file in parts; raises `IntegrityError` before the last one where its bytes do not have the digest."""
    hashed = hashlib.sha256()
    with path.open("rb") as file:
        chunk = file.read(PART)
        while chunk:
            following = file.read(PART)
            hashed.update(chunk)
            if not following and "sha256:" + hashed.hexdigest() != digest:
                raise _changed(path)
            yield chunk
            meter.add(len(chunk))
            chunk = following


def _changed(path: Path) -> IntegrityError:
    return IntegrityError(f"{path.name} changed while it was published", fix="publish the package again")


def _explained(error: Exception, path: str, where: str, remote: bool) -> HubError:
    problem = str(error).partition("\n")[0][:500]  # the lines after it are for obstore's developers
    if isinstance(error, PermissionDeniedError | UnauthenticatedError | PermissionError):
        return HubError(
            f"access to {path} in {where} is denied", found=problem, fix="check your credentials or permissions"
        )
    if remote and any(server in problem for server in _ASKED_FOR_CREDENTIALS):
        fix = "set the cloud's environment variables (docs/hub.md, Homes), or log in with its own tool"
        return HubError(f"no credentials for {where}", found=problem, fix=fix)
    if remote and any(code in str(error) for code in _NO_BUCKET):
        return HubError(f"there is no bucket for {where}", found=problem, fix="check the location, or make the bucket")
    if isinstance(error, GenericError) and remote:
        return UnreachableError(f"{where} failed at {path}", found=problem, fix="check the network and the location")
    return HubError(f"the hub failed at {path}", found=problem, fix="check the hub's folder and permissions")
