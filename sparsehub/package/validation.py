"""Validates package folders, without torch, before anything in them is used: docs/format.md, section 8."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from sparsehub.deltafile import DELTA_FILE, StoredDelta, validate_delta
from sparsehub.errors import FormatError, IntegrityError, ManifestError, SparsehubError
from sparsehub.files import CHUNK, MAX_PACKAGE_JSON_BYTES, sha256_bytes
from sparsehub.package.manifest import (
    CARD_FILE,
    HEAD_FILE,
    MANIFEST_FILE,
    MAX_SIGNATURE_BYTES,
    SIGNATURE_FILE,
    FileRecord,
    Manifest,
    check_manifest,
    is_allowed_file,
    parse_manifest,
)
from sparsehub.progress import BYTES, work
from sparsehub.tensorfile import not_finite_at, parse_header, stored_array

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# A card may be printed in a terminal, where these would move the cursor or rename the window.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def read_manifest(folder: Path) -> Manifest:
    """The validated manifest of a package folder; raises `ManifestError`. The other files are not looked at."""
    try:
        return parse_manifest(read_bounded(folder, MANIFEST_FILE, MAX_PACKAGE_JSON_BYTES, ManifestError))
    except OSError as error:
        found = f"no {MANIFEST_FILE}" if isinstance(error, FileNotFoundError | NotADirectoryError) else str(error)
        near = package_beside(folder)
        fix = f"give a package folder, such as {near}" if near else "give a package folder"
        raise ManifestError(f"{folder} is not a package", found=found, fix=fix) from error


def package_beside(folder: Path) -> Path | None:
    """The package whose folder is named most like one that is none, for messages; None where nothing is near."""
    try:
        names = [found.parent.name for found in folder.parent.glob(f"*/{MANIFEST_FILE}")]
    except OSError:
        return None
    near = difflib.get_close_matches(folder.name, names, n=1, cutoff=0.75)
    return folder.parent / near[0] if near else None


def read_bounded(folder: Path, name: str, limit: int, error: type[SparsehubError]) -> bytes:
    """The bytes of a plain file of at most `limit`; raises `error` for a longer one, and `OSError`, also for a link, a
    pipe or a device: whoever can write to the folder may put one there after it was looked at."""
    with _opened(folder, name) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(f"{name} is no plain file")
        if status.st_size > limit:
            raise error(f"{name} is too large", found=f"{status.st_size} bytes", expected=f"at most {limit}")
        return file.read(status.st_size + 1)[:limit]  # a buffer as large as the file, not as the limit


def validate_package(folder: Path) -> Manifest:
    """Validate every byte of a package; raises `FormatError`. Whether it fits a backbone: `check_backbone`.

    Takes at most one and a half times the memory of the largest file.
    """
    manifest = read_manifest(folder)
    check_files(folder, manifest)
    total = sum(record.size for record in manifest.files.values())
    with work(f"checking {manifest.name}@{manifest.version}", total, BYTES) as advance:
        for name, record in manifest.files.items():
            _validate_content(name, read_file(folder, name, record), manifest)
            advance(record.size)
    return manifest


def validate_contents(folder: Path, manifest: Manifest) -> None:
    """Validate a package whose every byte was hashed as it was written: all that `validate_package` does but hashing.

    Raises `FormatError`.
    """
    check_files(folder, manifest)
    for name in manifest.files:
        with _opened(folder, name) as file:
            _validate_content(name, file.read(), manifest)


def _validate_content(name: str, data: bytes, manifest: Manifest) -> None:
    if name == DELTA_FILE:
        validate_stored_delta(data, manifest)
    elif name == HEAD_FILE:
        validate_head(data)
    else:
        validate_attachment(name, data)


def validate_digests(folder: Path, manifest: Manifest) -> None:
    """Check every file's size and digest against the manifest; raises `IntegrityError`.

    Enough for a package of a digest that was validated before: it has the same bytes.
    """
    for name, record in manifest.files.items():
        with _opened(folder, name) as file:
            hashed, size = hashlib.sha256(), 0
            while size <= record.size and (chunk := file.read(CHUNK)):
                hashed.update(chunk)
                size += len(chunk)
        _check_same(name, record, size, "sha256:" + hashed.hexdigest())


def check_files(folder: Path, manifest: Manifest) -> None:
    """Check names, types and sizes of everything in the folder, reading no file; raises `FormatError`."""
    found = {entry.name: entry.stat(follow_symlinks=False) for entry in os.scandir(folder)}
    for name, status in found.items():
        if not is_allowed_file(name) or not stat.S_ISREG(status.st_mode):
            raise FormatError(f"{folder} holds something that a package may not hold", found=ascii(name[:200]))
    present = set(found) - {MANIFEST_FILE, SIGNATURE_FILE}
    if present != set(manifest.files):
        raise FormatError(
            f"the files in {folder} are not those of the manifest",
            found=", ".join(sorted(present)),
            expected=", ".join(sorted(manifest.files)),
        )
    for name, record in manifest.files.items():
        if found[name].st_size != record.size:
            raise _wrong_size(name, found[name].st_size, record.size)
    if SIGNATURE_FILE in found and found[SIGNATURE_FILE].st_size > MAX_SIGNATURE_BYTES:
        size = found[SIGNATURE_FILE].st_size
        raise FormatError(f"{SIGNATURE_FILE} is too large", found=f"{size} bytes", expected=MAX_SIGNATURE_BYTES)


def read_file(folder: Path, name: str, record: FileRecord) -> bytes:
    """A file's bytes, checked against size and digest; the very bytes that were hashed are returned."""
    with _opened(folder, name) as file:
        data = file.read(record.size)
        more = file.read(1)
    _check_same(name, record, len(data) + len(more), sha256_bytes(data))
    return data


def _opened(folder: Path, name: str) -> BinaryIO:
    return os.fdopen(os.open(folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb")


def _check_same(name: str, record: FileRecord, size: int, digest: str) -> None:
    if size != record.size:
        raise _wrong_size(name, size, record.size)
    if digest != record.sha256:
        fix = "fetch the package again"
        raise IntegrityError(f"{name} is damaged or was changed", found=digest, expected=record.sha256, fix=fix)


def validate_stored_delta(data: bytes, manifest: Manifest) -> StoredDelta:
    """Validate the bytes of delta.safetensors against the manifest; raises `FormatError`."""
    shapes = {name: touched.shape for name, touched in manifest.touched.items()}
    assert manifest.delta is not None  # the manifest names no delta's file otherwise
    stored = validate_delta(data, shapes, manifest.delta.value_dtype)
    check_nnz(manifest, dict(zip(stored.layout.names, stored.nnz.tolist(), strict=True)))
    return stored


def check_nnz(manifest: Manifest, found: Mapping[str, int]) -> None:
    """Raises `FormatError` where a parameter has another number of entries than the manifest says."""
    for name, touched in manifest.touched.items():
        if found[name] != touched.nnz:
            raise FormatError(
                f"{name!r} has another number of entries than the manifest says",
                found=found[name],
                expected=touched.nnz,
            )


def validate_head(data: bytes) -> None:
    """Validate the bytes of head.safetensors: its header, and that every number in it is finite."""
    for name, entry in parse_header(data, HEAD_FILE).entries.items():
        array: NDArray[np.generic] = stored_array(data, entry)
        if not_finite_at(array, entry.dtype) is not None:
            raise FormatError(f"{name!r} holds values that are not finite", found=f"in {HEAD_FILE}")


def validate_attachment(name: str, data: bytes) -> None:
    """Validate the card or a picture: only people and browsers read them, so only what could harm these is checked."""
    if name != CARD_FILE:
        if not data.startswith(PNG_SIGNATURE):
            raise FormatError(f"{name} is not a PNG picture", found=repr(data[:8]), expected=repr(PNG_SIGNATURE))
        return
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(f"{name} is not UTF-8", found=str(error)) from error
    if (control := _CONTROL.search(text)) is not None:
        found = f"U+{ord(control[0]):04X} at character {control.start()}"
        raise FormatError(f"{name} holds a control character", found=found, expected="text, tabs and line feeds")


def rename_package(manifest: Manifest, *, name: str | None = None, version: str | None = None) -> Manifest:
    """The manifest of the same package under another name or version, which gives it another digest."""
    renamed = dataclasses.replace(manifest, name=name or manifest.name, version=version or manifest.version)
    check_manifest(renamed)
    return renamed


def _wrong_size(name: str, found: int, expected: int) -> IntegrityError:
    return IntegrityError(
        f"{name} has the wrong size, truncated perhaps",
        found=f"{found} bytes",
        expected=f"{expected} bytes",
        fix="fetch the package again",
    )
