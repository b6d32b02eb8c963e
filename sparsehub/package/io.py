"""Reading and writing a package folder. All is proved before anything is used; the rules are in docs/format.md."""

from __future__ import annotations

import dataclasses
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from sparsehub.backbone import Backbone
from sparsehub.delta import DELTA_FILE, Delta, delta_bytes, read_delta
from sparsehub.errors import BackboneMismatchError, FormatError, IntegrityError, ManifestError
from sparsehub.files import MAX_JSON_BYTES, new_folder, sha256_bytes, sha256_file
from sparsehub.package.manifest import (
    CARD_FILE,
    HEAD_FILE,
    MANIFEST_FILE,
    SIGNATURE_FILE,
    FileRecord,
    Manifest,
    check_manifest,
    is_allowed_file,
    parse_manifest,
)
from sparsehub.tensorfile import load_tensors, require_finite, tensor_bytes


@dataclass(frozen=True)
class Package:
    """A package that was read and proved. head: by its transformers names, on the CPU. digest: of the manifest."""

    manifest: Manifest
    delta: Delta
    head: Mapping[str, Tensor]
    digest: str


def read_manifest(folder: Path) -> Manifest:
    """The manifest alone, proved; raises `ManifestError`."""
    path = folder / MANIFEST_FILE
    if not path.is_file():
        raise ManifestError(f"{folder} is not a package", found="no " + MANIFEST_FILE, fix="give a package folder")
    if path.stat().st_size > MAX_JSON_BYTES:
        raise ManifestError(f"{MANIFEST_FILE} is too large", found=f"{path.stat().st_size} bytes")
    return parse_manifest(path.read_bytes())


def read_package(folder: Path) -> Package:
    """Read a package and prove every byte of it; raises `FormatError`. Whether it fits a backbone: `check_backbone`."""
    manifest = read_manifest(folder)
    check_files(folder, manifest)
    shapes = {name: touched.shape for name, touched in manifest.delta.parameters.items()}
    delta = read_delta(folder / DELTA_FILE, shapes, manifest.delta.value_kind, manifest.delta.value_dtype)
    for name, part in delta.parameters.items():
        if len(part.indices) != manifest.delta.parameters[name].nnz:
            raise FormatError(
                f"{name!r} has another number of entries than the manifest says",
                found=len(part.indices),
                expected=manifest.delta.parameters[name].nnz,
            )
    head = load_tensors(folder / HEAD_FILE) if HEAD_FILE in manifest.files else {}
    for name, tensor in head.items():
        require_finite(name, tensor, FormatError)
    return Package(manifest, delta, head, manifest.digest)


def check_files(folder: Path, manifest: Manifest) -> None:
    """Names, kinds, sizes and hashes, in this order: nothing is read before its size is known to be right."""
    found = {entry.name: entry for entry in os.scandir(folder)}
    for name, entry in found.items():
        if not is_allowed_file(name) or not stat.S_ISREG(entry.stat(follow_symlinks=False).st_mode):
            raise FormatError(f"{folder} holds something that a package may not hold", found=ascii(name[:200]))
    present = set(found) - {MANIFEST_FILE, SIGNATURE_FILE}
    if present != set(manifest.files):
        raise FormatError(
            f"the files in {folder} are not those of the manifest",
            found=", ".join(sorted(present)),
            expected=", ".join(sorted(manifest.files)),
        )
    for name, record in manifest.files.items():
        if found[name].stat().st_size != record.size:
            raise IntegrityError(
                f"{name} has the wrong size, truncated perhaps",
                found=f"{found[name].stat().st_size} bytes",
                expected=f"{record.size} bytes",
                fix="fetch the package again",
            )
    for name, record in manifest.files.items():
        digest = sha256_file(folder / name)
        if digest != record.sha256:
            raise IntegrityError(
                f"{name} is damaged or was changed", found=digest, expected=record.sha256, fix="fetch the package again"
            )


def check_backbone(manifest: Manifest, backbone: Backbone) -> None:
    """Prove that a package was made for these very weights; raises `BackboneMismatchError`."""
    for name, touched in manifest.delta.parameters.items():
        slot = backbone.arena.slots.get(name)
        if slot is None or slot.shape != touched.shape:
            raise BackboneMismatchError(
                f"{manifest.name} changes {name!r}, which this backbone lacks or has in another shape",
                found=f"{backbone.checkpoint.id} {slot.shape if slot else ''}".strip(),
                expected=f"{manifest.backbone.id} {touched.shape}",
                fix=f"load the backbone {manifest.backbone.id}",
            )
        digest = backbone.digest_of(name)
        if digest != touched.digest:
            raise _mismatch(manifest, backbone, f"the weights of {name!r} are others", digest, touched.digest)
    if backbone.checkpoint.fingerprint != manifest.backbone.fingerprint:
        found, expected = backbone.checkpoint.fingerprint, manifest.backbone.fingerprint
        raise _mismatch(manifest, backbone, "the fingerprints differ", found, expected)


def _mismatch(
    manifest: Manifest, backbone: Backbone, what: str, found: object, expected: object
) -> BackboneMismatchError:
    return BackboneMismatchError(
        f"{manifest.name} was made for another backbone: {what}",
        found=f"{backbone.checkpoint.id} with {found}",
        expected=f"{manifest.backbone.id} with {expected}",
        fix="load the checkpoint that the package was trained on",
    )


def write_package(
    folder: Path, draft: Manifest, delta: Delta, head: Mapping[str, Tensor], card: str, pictures: Mapping[str, bytes]
) -> Manifest:
    """Write a package atomically and read it back; returns the manifest with its file records filled in."""
    written, stated = (delta.value_kind, delta.value_dtype), (draft.delta.value_kind, draft.delta.value_dtype)
    if written != stated:  # the file does not say which kind its values are: only the manifest does
        raise ManifestError(
            "the delta's values are not of the kind that the manifest states", found=written, expected=stated
        )
    contents = {DELTA_FILE: delta_bytes(delta), CARD_FILE: card.encode(), **pictures}
    if head:
        contents[HEAD_FILE] = tensor_bytes(head)
    records = {name: FileRecord(len(data), sha256_bytes(data)) for name, data in contents.items()}
    manifest = dataclasses.replace(draft, files=records)
    check_manifest(manifest)
    with new_folder(folder) as temporary:
        for name, data in {**contents, MANIFEST_FILE: manifest.to_bytes()}.items():
            (temporary / name).write_bytes(data)
        read_package(temporary)  # what cannot be read back is never given a name
    return manifest


def rename_package(manifest: Manifest, *, name: str | None = None, version: str | None = None) -> Manifest:
    """The same package under another name or version: another manifest, so another digest."""
    renamed = dataclasses.replace(manifest, name=name or manifest.name, version=version or manifest.version)
    check_manifest(renamed)
    return renamed
