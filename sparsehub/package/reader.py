"""Reads packages with their tensors; every byte is validated (`validation.py`) before anything of it is used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from sparsehub.backbone import Backbone
from sparsehub.delta import Delta, parse_delta
from sparsehub.deltafile import DELTA_FILE
from sparsehub.errors import BackboneMismatchError
from sparsehub.package.manifest import HEAD_FILE, Manifest
from sparsehub.package.validation import (
    check_files,
    check_nnz,
    read_file,
    read_manifest,
    validate_attachment,
    validate_head,
)
from sparsehub.progress import BYTES, work
from sparsehub.tensorfile import parse_tensors

_SHOWN = 60  # characters of a value of a configuration


@dataclass(frozen=True)
class Package:
    """A package in memory, read and validated: what the engine loads and the conversions work on."""

    manifest: Manifest
    delta: Delta  # without a parameter where the package has no delta
    head: Mapping[str, Tensor]  # by the names in the task's model, on the CPU; empty where the task has no head
    digest: str  # sha256 of the manifest's bytes
    attachments: Mapping[str, bytes] = field(default_factory=dict)  # card and pictures by file name, as published


def read_package(folder: str | Path) -> Package:
    """Read a package and validate every byte of it; raises `FormatError`.

    Whether it fits a backbone is another question, which `check_backbone` answers.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    check_files(folder, manifest)
    delta, head, attachments = None, {}, {}
    total = sum(record.size for record in manifest.files.values())
    with work(f"reading {manifest.name}@{manifest.version}", total, BYTES) as advance:
        for name, record in manifest.files.items():  # one file in memory at a time
            data = read_file(folder, name, record)
            if name == DELTA_FILE:
                delta = _read_delta(data, manifest)
            elif name == HEAD_FILE:
                head = _read_head(data)
            else:
                validate_attachment(name, data)
                attachments[name] = data
            advance(record.size)
    return Package(manifest, delta or Delta({}), head, manifest.digest, attachments)


def _read_delta(data: bytes, manifest: Manifest) -> Delta:
    assert manifest.delta is not None  # the manifest names no delta's file otherwise
    shapes = {name: touched.shape for name, touched in manifest.touched.items()}
    delta = parse_delta(data, shapes, manifest.delta.value_kind, manifest.delta.value_dtype)
    check_nnz(manifest, {name: len(part.indices) for name, part in delta.parameters.items()})
    return delta


def _read_head(data: bytes) -> dict[str, Tensor]:
    validate_head(data)
    return parse_tensors(data, HEAD_FILE)


def check_backbone(manifest: Manifest, backbone: Backbone) -> None:
    """Raises `BackboneMismatchError` unless the package was made for the weights of this very backbone.

    Where the package says what the backbone's configuration was, that must compute the same with them.
    """
    for name, touched in manifest.touched.items():
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
    _check_configuration(manifest, backbone)


def _check_configuration(manifest: Manifest, backbone: Backbone) -> None:
    """A field that only one of them has is another version's of transformers: what both have must be equal."""
    stated = manifest.backbone_configuration
    here = backbone.configuration if stated else {}
    names = sorted(name for name in stated.keys() & here.keys() if stated[name] != here[name])
    if names:
        what = "its configuration computes something else with the same weights"
        found, expected = (", ".join(f"{n}: {str(table[n])[:_SHOWN]}" for n in names[:8]) for table in (here, stated))
        raise _mismatch(manifest, backbone, what, found, expected)


def _mismatch(
    manifest: Manifest, backbone: Backbone, what: str, found: object, expected: object
) -> BackboneMismatchError:
    here = backbone.checkpoint
    name = here.id if here.quantised is None else f"{here.id}, quantised by {here.quantised},"
    return BackboneMismatchError(
        f"{manifest.name} was made for another backbone: {what}",
        found=f"{name} with {found}",
        expected=f"{manifest.backbone.id} with {expected}",
        fix="load the checkpoint that the package was trained on",
    )
