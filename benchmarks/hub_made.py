"""What the hub's benchmark works on: packages, hubs full of versions, and an S3 beside it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import obstore
import torch
from obstore.store import ObjectStore, S3Store

from benchmarks.models import save_encoder, whole_delta
from sparsehub.backbone import load_backbone
from sparsehub.delta import Delta, ParameterDelta
from sparsehub.files import canonical_json
from sparsehub.hub import PackageHub
from sparsehub.hub.folder import FolderObjects
from sparsehub.hub.objects import Objects
from sparsehub.hub.store import StoreHome
from sparsehub.package import prove_package, rename_package
from sparsehub.package.draft import backbone_ref, delta_record
from sparsehub.package.manifest import BackboneRef, Manifest, TaskSpec
from sparsehub.package.seal import write_carded_package

OWN = "mine"  # the task that is looked for
OWN_VERSIONS = 3
VERSIONS_A_TASK = 100
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
    write_carded_package(folder, _draft(backbone_ref(backbone), delta), delta, {})
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
    write_carded_package(folder, _draft(backbone, delta), delta, {})
    return Made(f"{_LAYERS} x {_WIDTH} x {_WIDTH}, 0.9%", folder, delta, None)


def _draft(backbone: BackboneRef, delta: Delta) -> Manifest:
    record = delta_record("random", delta, backbone.parameters, lambda _: _DIGEST)
    return Manifest(1, OWN, "1.0.0", _TASK, backbone, record, {})


def folder_hub(folder: Path) -> PackageHub:
    return PackageHub(StoreHome(FolderObjects(folder)))


class CountingHub(PackageHub):
    """A hub in a store. requests: that it has made so far."""

    def __init__(self, store: ObjectStore):
        self.requests, self._objects = 0, store
        super().__init__(StoreHome(Objects(self._store, "store")))

    def _store(self) -> ObjectStore:
        self.requests += 1
        return self._objects


def crowd(hub: PackageHub, store: ObjectStore, folder: Path, number: int) -> None:
    """Our task, and so many versions of others, whose objects are put where a publish puts them, and not flushed."""
    for version in range(OWN_VERSIONS):
        hub.publish(folder, version=f"1.0.{version}")
    manifest = prove_package(folder)

    def put(place: int) -> None:
        name, version = f"other-{place // VERSIONS_A_TASK}", f"1.0.{place % VERSIONS_A_TASK}"
        renamed = rename_package(manifest, name=name, version=version)
        obstore.put(store, f"manifests/sha256/{renamed.digest[7:]}", renamed.to_bytes())
        obstore.put(store, f"tags/{name}/{version}", canonical_json({"digest": renamed.digest}))

    with ThreadPoolExecutor(4) as workers:
        list(workers.map(put, range(number)))


@contextmanager
def s3() -> Iterator[str]:
    """The address of moto's S3, started as the tests start it, in a process of its own."""
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    server = context.Process(target=_serve, args=(theirs,), daemon=True)
    server.start()
    try:
        yield ours.recv()
    finally:
        server.kill()


def _serve(pipe: Any) -> None:
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "hub"))
    with importlib.import_module("s3_server").served() as address:
        pipe.send(address)
        pipe.recv()


def bucket(address: str, prefix: str) -> ObjectStore:
    """A place of its own in the bucket."""
    return S3Store(
        "bucket",
        prefix=prefix,
        endpoint=address,
        region="us-east-1",
        access_key_id="key",
        secret_access_key="secret",
        client_options={"allow_http": True},
    )
