"""What the hub's benchmark works on: packages, and hubs full of versions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from obstore.store import ObjectStore

from benchmarks.models import save_encoder, whole_delta
from sparsehub.backbone import load_backbone
from sparsehub.delta import Delta, ParameterDelta
from sparsehub.hub import PackageHub
from sparsehub.hub.blob_store import BlobStore
from sparsehub.hub.blob_store_backend import BlobStoreBackend
from sparsehub.hub.folder_blob_store import FolderBlobStore
from sparsehub.package import rename_package, validate_package
from sparsehub.package.manifest import BackboneRef, Manifest
from sparsehub.package.manifest_builder import backbone_ref, delta_record
from sparsehub.package.task_spec import TaskSpec
from sparsehub.package.writer import write_package

OWN = "mine"  # the task that is looked for
OWN_VERSIONS = 3
VERSIONS_A_TASK = 100
Fill = Callable[[str, Mapping[str, bytes]], None]
"""Puts the versions of a task, by their manifests, where a publish would put them; not flushed."""
_LAYERS, _WIDTH, _ENTRIES = 64, 4096, 157_000
_DIGEST = "sha256:" + "0" * 64
_TASK = TaskSpec(
    kind="text-classification",
    labels=("no", "yes"),
    problem_type="single_label_classification",
    text_fields=("text",),
    label_field="label",
    max_length=128,
    metrics=("accuracy",),
)


@dataclass(frozen=True)
class Made:
    """A package on the disk, the delta in it, and the encoder that it is of, where there is one."""

    title: str
    folder: Path
    delta: Delta
    encoder: Path | None

    @property
    def size(self) -> int:
        return sum(path.stat().st_size for path in self.folder.iterdir())


def encoder_package(size: str, root: Path) -> Made:
    """0.5% of a whole random encoder, as a trained task has it."""
    encoder, folder = root / "encoders" / size.replace(" ", ""), root / "packages" / size.replace(" ", "")
    save_encoder(size, encoder)
    backbone = load_backbone(str(encoder))
    delta = whole_delta(backbone, 1)
    write_package(folder, _draft(backbone_ref(backbone), delta), delta, {})
    return Made(f"{size}, 0.5%", folder, delta, encoder)


def large_package(root: Path) -> Made:
    """Ten million entries, in matrices of 4096 x 4096."""
    generator, folder, parts = torch.Generator().manual_seed(2), root / "packages" / "large", {}
    for number in range(_LAYERS):
        places = torch.randint(_WIDTH**2, (_ENTRIES,), generator=generator).unique()
        values = torch.randn(len(places), generator=generator).half()
        parts[f"layers.{number}.weight"] = ParameterDelta((_WIDTH, _WIDTH), places, values)
    delta = Delta(parts, "add", "float16")
    backbone = BackboneRef("random", "", "LlamaModel", "float16", _DIGEST, _LAYERS * _WIDTH**2)
    write_package(folder, _draft(backbone, delta), delta, {})
    return Made(f"{_LAYERS} x {_WIDTH} x {_WIDTH}, 0.9%", folder, delta, None)


def _draft(backbone: BackboneRef, delta: Delta) -> Manifest:
    record = delta_record("random", delta, backbone.parameters, lambda _: _DIGEST)
    return Manifest(1, OWN, "1.0.0", _TASK, backbone, record, {})


def folder_hub(folder: Path) -> PackageHub:
    return PackageHub(BlobStoreBackend(FolderBlobStore(folder)))


class CountingHub(PackageHub):
    """A hub in a store. requests: that it has made so far."""

    def __init__(self, store: ObjectStore):
        self.requests, self._objects = 0, store
        super().__init__(BlobStoreBackend(BlobStore(self._store, "store")))

    def _store(self) -> ObjectStore:
        self.requests += 1
        return self._objects


def crowd(hub: PackageHub, fill: Fill, folder: Path, number: int) -> None:
    """Our task, published, and so many versions of others."""
    for version in range(OWN_VERSIONS):
        hub.publish(folder, version=f"1.0.{version}")
    manifest = validate_package(folder)
    for first in range(0, number, VERSIONS_A_TASK):
        name, versions = f"other-{first // VERSIONS_A_TASK}", range(min(VERSIONS_A_TASK, number - first))
        renamed = [rename_package(manifest, name=name, version=f"1.0.{version}") for version in versions]
        fill(name, {other.version: other.to_bytes() for other in renamed})
