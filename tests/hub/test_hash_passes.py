"""How often a file of a package is hashed: once as it comes, not by a pull that finds it untouched, once by a use."""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from sparsehub.hub import PackageHub, open_hub, package_hub
from sparsehub.hub.cache import PackageCache
from sparsehub.hub.package_loader import load_package, pull, use_package
from sparsehub.hub.validation_cache import record_of
from sparsehub.package import read_manifest

HONEST = hashlib.sha256


class Passes:
    """Counts the digests that are computed, by digest."""

    def __init__(self) -> None:
        self.digests = Counter[str]()

    def sha256(self, data: bytes = b"") -> Any:
        passes, hashed = self, HONEST(data)

        class Counted:
            def update(self, more: bytes) -> None:
                hashed.update(more)

            def hexdigest(self) -> str:
                passes.digests[f"sha256:{hashed.hexdigest()}"] += 1
                return hashed.hexdigest()

        return Counted()

    def of(self, files: Mapping[str, str]) -> dict[str, int]:
        """How often each file was hashed since the last look, by name."""
        found = {name: self.digests[digest] for name, digest in files.items()}
        self.digests.clear()
        return found


@pytest.fixture
def hub(tmp_path: Path, make_package, monkeypatch: pytest.MonkeyPatch) -> PackageHub:
    monkeypatch.setenv("SPARSEHUB_CACHE", str(tmp_path / "cache"))
    found = open_hub(tmp_path / "hub")
    found.publish(make_package(head=1000))
    return found


@pytest.fixture
def files(hub: PackageHub) -> dict[str, str]:
    """The files of the package, to their digests."""
    manifest = hub.manifest("trec", hub.resolve("trec").digest)
    return {name: record.sha256 for name, record in manifest.files.items()}


@pytest.fixture
def passes(files: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Passes:
    found = Passes()
    monkeypatch.setattr(hashlib, "sha256", found.sha256)
    return found


def each(files: Mapping[str, str], count: int) -> dict[str, int]:
    return dict.fromkeys(files, count)


def test_a_pull_hashes_each_file_once_as_it_comes_and_the_next_one_not_at_all(hub, files, passes) -> None:
    pulled = pull("trec@1.0.0", hub)
    assert passes.of(files) == each(files, 1)
    assert record_of(pulled.folder).is_file(), "the record of it is handed on"
    for _ in range(2):
        assert pull("trec@1.0.0", hub).manifest == pulled.manifest
        assert passes.of(files) == each(files, 0)


def test_a_use_of_a_cached_package_hashes_each_file_once(hub, files, passes) -> None:
    pull("trec@1.0.0", hub)
    passes.of(files)
    for _ in range(2):
        load_package("trec@1.0.0", hub)
        assert passes.of(files) == each(files, 1)


def test_a_first_use_hashes_what_comes_and_what_it_reads(hub, files, passes) -> None:
    load_package("trec@1.0.0", hub)
    assert passes.of(files) == each(files, 2)


def test_a_copy_is_hashed_as_it_is_written(hub, files, passes, tmp_path: Path) -> None:
    pull("trec@1.0.0", hub)
    passes.of(files)
    pull("trec@1.0.0", hub, out=tmp_path / "mine")
    assert passes.of(files) == each(files, 1)


def test_a_plain_fetch_hashes_each_file_once(hub, files, passes, tmp_path: Path) -> None:
    hub.fetch(hub.resolve("trec"), tmp_path / "mine")
    assert passes.of(files) == each(files, 1)


def test_an_interrupted_pull_hashes_what_it_kept_with_what_still_comes(hub, files, passes, monkeypatch) -> None:
    def broken(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(package_hub, "new_folder", broken)
        with pytest.raises(KeyboardInterrupt):
            pull("trec@1.0.0", hub)
    assert passes.of(files) == each(files, 1)
    pull("trec@1.0.0", hub)
    assert passes.of(files) == each(files, 1)


def test_a_record_is_not_believed_once_a_file_was_touched(hub, files, passes) -> None:
    pulled = pull("trec@1.0.0", hub)
    passes.of(files)
    head = pulled.folder / "head.safetensors"
    head.write_bytes(head.read_bytes())
    pull("trec@1.0.0", hub)
    assert passes.of(files) == each(files, 1)
    head.write_bytes(head.read_bytes()[:-1] + b"\0")
    pull("trec@1.0.0", hub)
    assert read_manifest(pulled.folder) == pulled.manifest
    assert use_package("trec@1.0.0", hub, lambda folder, _: HONEST((folder / head.name).read_bytes()).hexdigest()) == (
        files[head.name].removeprefix("sha256:")
    )
    assert len(list((PackageCache().root / "damaged").iterdir())) == 1


def test_a_cache_that_takes_no_record_costs_a_hash(hub, files, passes) -> None:
    pulled = pull("trec@1.0.0", hub)
    shutil.rmtree(record_of(pulled.folder).parent)
    record_of(pulled.folder).parent.touch()
    passes.of(files)
    assert pull("trec@1.0.0", hub).manifest == pulled.manifest
    assert passes.of(files) == each(files, 1)
