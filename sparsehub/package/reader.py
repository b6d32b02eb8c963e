"""Packages with their tensors: read and written. All is proved before anything is used (`proof`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from sparsehub.backbone import Backbone
from sparsehub.delta import Delta, delta_bytes, parse_delta
from sparsehub.deltafile import DELTA_FILE
from sparsehub.errors import BackboneMismatchError, ManifestError
from sparsehub.files import new_folder, sha256_bytes
from sparsehub.package.manifest import CARD_FILE, HEAD_FILE, MANIFEST_FILE, FileRecord, Manifest, check_manifest
from sparsehub.package.validation import (
    check_files,
    check_nnz,
    read_file,
    read_manifest,
    rename_package,
    validate_attachment,
    validate_head,
    validate_package,
)
from sparsehub.tensorfile import parse_tensors, tensor_bytes

__all__ = [
    "Package",
    "check_backbone",
    "read_manifest",
    "read_package",
    "rename_package",
    "write_package",
]


@dataclass(frozen=True)
class Package:
    """A package that was read and proved. head: by its transformers names, on the CPU. digest: of the manifest.

    attachments: the card and its pictures, by file name; what they say is nobody's word but the publisher's.
    """

    manifest: Manifest
    delta: Delta
    head: Mapping[str, Tensor]
    digest: str
    attachments: Mapping[str, bytes] = field(default_factory=dict)


def read_package(folder: str | Path) -> Package:
    """Read a package and prove every byte of it; raises `FormatError`. Whether it fits a backbone: `check_backbone`."""
    folder = Path(folder)
    manifest = read_manifest(folder)
    check_files(folder, manifest)
    delta, head, attachments = None, {}, {}
    for name, record in manifest.files.items():  # one file in memory at a time
        data = read_file(folder, name, record)
        if name == DELTA_FILE:
            delta = _read_delta(data, manifest)
        elif name == HEAD_FILE:
            head = _read_head(data)
        else:
            validate_attachment(name, data)
            attachments[name] = data
    assert delta is not None, "no manifest is without a delta"
    return Package(manifest, delta, head, manifest.digest, attachments)


def _read_delta(data: bytes, manifest: Manifest) -> Delta:
    shapes = {name: touched.shape for name, touched in manifest.delta.parameters.items()}
    delta = parse_delta(data, shapes, manifest.delta.value_kind, manifest.delta.value_dtype)
    check_nnz(manifest, {name: len(part.indices) for name, part in delta.parameters.items()})
    return delta


def _read_head(data: bytes) -> dict[str, Tensor]:
    validate_head(data)
    return parse_tensors(data, HEAD_FILE)


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
    check_values(draft, delta)
    contents = {**tensor_files(delta, head), CARD_FILE: card.encode(), **pictures}
    records = {name: FileRecord(len(data), sha256_bytes(data)) for name, data in contents.items()}
    manifest = dataclasses.replace(draft, files=records)
    check_manifest(manifest)
    with new_folder(folder) as temporary:
        for name, data in {**contents, MANIFEST_FILE: manifest.to_bytes()}.items():
            (temporary / name).write_bytes(data)
        validate_package(temporary)  # what cannot be read back is never given a name
    return manifest


def check_values(draft: Manifest, delta: Delta) -> None:
    """Raises `ManifestError` where the manifest states another kind of values than the delta has."""
    written, stated = (delta.value_kind, delta.value_dtype), (draft.delta.value_kind, draft.delta.value_dtype)
    if written != stated:  # the file does not say which kind its values are: only the manifest does
        raise ManifestError(
            "the delta's values are not of the kind that the manifest states", found=written, expected=stated
        )


def tensor_files(delta: Delta, head: Mapping[str, Tensor]) -> dict[str, bytes]:
    """The contents of the tensor files, by name."""
    return {DELTA_FILE: delta_bytes(delta), **({HEAD_FILE: tensor_bytes(head)} if head else {})}
