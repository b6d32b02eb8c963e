from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import obstore
import pytest
import torch
from obstore.store import LocalStore, MemoryStore, ObjectStore

from sparsehub.delta import Delta, ParameterDelta
from sparsehub.hub.objects import FolderObjects, Objects
from sparsehub.hub.store import StoreHub
from sparsehub.package import Manifest, TaskSpec, write_package
from sparsehub.package.manifest import BackboneRef, DeltaRecord, TouchedParameter

MakePackage = Callable[..., Path]


@dataclass(frozen=True)
class Home:
    """A hub and the store under it, for those who damage what it holds."""

    hub: StoreHub
    raw: ObjectStore

    def paths(self, prefix: str | None = None) -> list[str]:
        return sorted(entry["path"] for batch in obstore.list(self.raw, prefix) for entry in batch)

    def read(self, path: str) -> bytes:
        return bytes(obstore.get(self.raw, path).bytes())

    def overwrite(self, path: str, data: bytes) -> None:
        obstore.put(self.raw, path, data)


@pytest.fixture(params=["folder", "memory"])
def home(request: pytest.FixtureRequest, tmp_path: Path) -> Home:
    if request.param == "memory":
        store = MemoryStore()
        return Home(StoreHub(Objects(lambda: store)), store)
    root = tmp_path / "hub"
    return Home(StoreHub(FolderObjects(root)), LocalStore(root, mkdir=True))


@pytest.fixture
def make_package(tmp_path: Path) -> Iterator[MakePackage]:
    """Writes tiny packages of two parameters and a head; each call makes a new folder."""
    numbers = itertools.count()

    def make(name: str = "trec", version: str = "1.0.0", card: str = "# A card\n", head: int = 4) -> Path:
        folder = tmp_path / "packages" / str(next(numbers))
        write_package(folder, _draft(name, version), _delta(), {"classifier.weight": torch.ones(2, head)}, card, {})
        return folder

    yield make


def _delta() -> Delta:
    indices = torch.tensor([1, 5, 9])
    return Delta({name: ParameterDelta((4, 4), indices, torch.tensor([0.5, -1.0, 2.0])) for name in ("a", "b")})


def _draft(name: str, version: str) -> Manifest:
    digest = "sha256:" + "0" * 64
    touched = {part: TouchedParameter((4, 4), digest, 3) for part in ("a", "b")}
    return Manifest(
        format_version=1,
        name=name,
        version=version,
        task=TaskSpec(
            kind="text-classification",
            labels=("no", "yes"),
            problem_type="single_label_classification",
            text_fields=("text",),
            label_field="label",
            max_length=64,
            metrics=("accuracy",),
        ),
        backbone=BackboneRef("tiny/bert", "main", "BertModel", "float32", digest, 32),
        delta=DeltaRecord("magnitude", 6 / 32, 6, "add", "float16", touched),
        files={},
        metrics={"test": {"accuracy": 0.75}},
    )
