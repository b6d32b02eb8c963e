from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import obstore
import pytest
import torch
from huggingface_hub import HfApi
from obstore.store import LocalStore, MemoryStore, ObjectStore, from_url

from sparsehub.delta import Delta, ParameterDelta
from sparsehub.hub import PackageHub, open_hub
from sparsehub.hub.blob_store import BlobStore
from sparsehub.hub.blob_store_backend import BlobStoreBackend
from sparsehub.hub.huggingface_backend import HuggingFaceBackend
from sparsehub.package import Manifest, TaskSpec
from sparsehub.package.manifest import BackboneRef, DeltaRecord, TouchedParameter
from tests.support.hub_servers import azure, gcs, huggingface, s3
from tests.support.packages import write_bare_package

STORES = ("folder", "memory", "s3", "gcs", azure.AZURE)
CARD = "---\nlibrary_name: sparsehub\ntags: [sparsehub]\n---\n\n# A card\n"
MakePackage = Callable[..., Path]


class Home(Protocol):
    """A hub, and what lies in its backend, for those who look at it or spoil it."""

    hub: PackageHub

    def everything(self) -> dict[str, Any]:
        """All that the backend holds: equal before and after, where nothing was written."""

    def paths(self, prefix: str | None = None) -> list[str]:
        """Every stored run of bytes."""

    def read(self, path: str) -> bytes: ...

    def overwrite(self, path: str, data: bytes) -> None: ...


@dataclass
class StoredHome:
    """A folder, a bucket or memory."""

    hub: PackageHub
    raw: ObjectStore

    def everything(self) -> dict[str, Any]:
        return {path: self.read(path) for path in self.paths()}

    def paths(self, prefix: str | None = None) -> list[str]:
        return sorted(entry["path"] for batch in obstore.list(self.raw, prefix) for entry in batch)

    def read(self, path: str) -> bytes:
        return bytes(obstore.get(self.raw, path).bytes())

    def overwrite(self, path: str, data: bytes) -> None:
        obstore.put(self.raw, path, data)


@dataclass
class HostedHome:
    """An organisation of its own on our small Hugging Face Hub. Paths are <repository>/<commit>/<file>."""

    hub: PackageHub
    state: huggingface.State
    owner: str
    address: str

    @property
    def repos(self) -> dict[str, huggingface.Repo]:
        return {n: repo for n, repo in self.state.repos.items() if n.startswith(f"{self.owner}/")}

    def everything(self) -> dict[str, Any]:
        return {n: (dict(r.branches), dict(r.tags), sorted(r.commits)) for n, r in self.repos.items()}

    def paths(self, prefix: str | None = None) -> list[str]:
        """The files of packages. prefix: of the file's name."""
        found = (
            f"{name}/{oid}/{file}"
            for name, repo in self.repos.items()
            for oid in set(repo.tags.values())
            for file in repo.commits[oid].files
            if file != ".gitattributes" and file.startswith(prefix or "")
        )
        return sorted(found)

    def _blob(self, path: str) -> tuple[huggingface.Commit, str]:
        owner, name, oid, file = path.split("/", 3)
        return self.repos[f"{owner}/{name}"].commits[oid], file

    def read(self, path: str) -> bytes:
        commit, file = self._blob(path)
        return self.state.blobs[commit.files[file]]

    def overwrite(self, path: str, data: bytes) -> None:
        commit, file = self._blob(path)
        commit.files[file] = self.state.store(data)


@pytest.fixture(scope="session")
def s3_address() -> Iterator[str]:
    with s3.served() as address:
        yield address


@pytest.fixture(scope="session")
def gcs_address() -> Iterator[str]:
    with gcs.served() as address:
        yield address


@pytest.fixture(scope="session")
def azure_address() -> Iterator[str]:
    with azure.served() as address:
        yield address


@pytest.fixture(scope="session")
def hf_hub() -> Iterator[tuple[str, huggingface.State]]:
    state = huggingface.State()
    with huggingface.served(state) as address:
        yield address, state


_numbers = itertools.count()


def _s3(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> StoredHome:
    settings = {"ENDPOINT_URL": request.getfixturevalue("s3_address"), "ALLOW_HTTP": "true", "REGION": "us-east-1"}
    for name, value in {**settings, "ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": "secret"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    location = f"s3://{s3.BUCKET}/team/{next(_numbers)}"
    return StoredHome(open_hub(location), from_url(location))


def _gcs(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StoredHome:
    account = gcs.credentials(request.getfixturevalue("gcs_address"), tmp_path)
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT", str(account))
    monkeypatch.setenv("GOOGLE_ALLOW_HTTP", "true")
    location = f"gs://{gcs.BUCKET}/team/{next(_numbers)}"
    return StoredHome(open_hub(location), from_url(location, client_options={"allow_http": True}))


def _azure(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> StoredHome:
    settings = {"ENDPOINT": request.getfixturevalue("azure_address"), "ACCOUNT_NAME": azure.ACCOUNT}
    for name, value in {**settings, "ACCOUNT_KEY": azure.KEY}.items():
        monkeypatch.setenv(f"AZURE_STORAGE_{name}", value)
    monkeypatch.setenv("AZURE_ALLOW_HTTP", "true")
    location = f"az://{azure.CONTAINER}/team/{next(_numbers)}"
    return StoredHome(open_hub(location), from_url(location))


def hosted(address: str, state: huggingface.State, token: str | bool = "hf_writer") -> HostedHome:
    """A new organisation."""
    state.fault, state.cdn_host, state.cdn_tokens = (lambda method, path: None), "", []
    owner = f"org-{next(_numbers)}"
    backend = HuggingFaceBackend(owner, api=HfApi(endpoint=address, token=token))
    return HostedHome(PackageHub(backend), state, owner, address)


def _make(kind: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    if kind == "folder":
        return StoredHome(open_hub(tmp_path / "hub"), LocalStore(tmp_path / "hub", mkdir=True))
    if kind == "memory":
        store = MemoryStore()
        return StoredHome(PackageHub(BlobStoreBackend(BlobStore(lambda: store, "memory"))), store)
    if kind == "s3":
        return _s3(request, monkeypatch)
    if kind == "gcs":
        return _gcs(request, tmp_path, monkeypatch)
    if kind == "azure":
        return _azure(request, monkeypatch)
    return hosted(*request.getfixturevalue("hf_hub"))


@pytest.fixture
def make_home(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Home]:
    """make_home("s3"): an empty backend of that kind."""
    return lambda kind: _make(kind, request, tmp_path, monkeypatch)


@pytest.fixture(params=[*STORES, "huggingface"])
def backend(request: pytest.FixtureRequest, make_home: Callable[[str], Home]) -> Home:
    """A backend of each kind, empty."""
    return make_home(request.param)


@pytest.fixture(params=STORES)
def store_home(request: pytest.FixtureRequest, make_home: Callable[[str], Home]) -> Home:
    """A backend of each kind that keeps objects, empty."""
    return make_home(request.param)


@pytest.fixture
def hf_home(hf_hub: tuple[str, huggingface.State]) -> HostedHome:
    return hosted(*hf_hub)


@pytest.fixture
def make_package(tmp_path: Path) -> Iterator[MakePackage]:
    """Writes tiny packages of two parameters and a head; each call makes a new folder."""
    numbers = itertools.count()

    def make(name: str = "trec", version: str = "1.0.0", card: str = CARD, head: int = 4) -> Path:
        folder = tmp_path / "packages" / str(next(numbers))
        write_bare_package(
            folder, _draft(name, version), _delta(), {"classifier.weight": torch.ones(2, head)}, card, {}
        )
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
