"""Processes that race, and processes that die."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest

from sparsehub.errors import NotFoundError, VersionExistsError
from sparsehub.hub import open_hub
from sparsehub.hub.cache import PackageCache
from sparsehub.hub.package_loader import pull
from sparsehub.package import read_package, validate_package
from tests.support import SOAK
from tests.support.hub_servers.azure import AZURE

pytestmark = pytest.mark.slow
PROCESSES = 16
KILLS = 50 if SOAK else 8
WRITES = 5  # delta, head, card, manifest, tag; latest comes after
CARD = "---\nlibrary_name: sparsehub\n---\n"
PROGRAM = Path(__file__).parents[1] / "support" / "hub_processes.py"


def children(backend: Any, *arguments: object, **environment: str) -> list[dict[str, Any]]:
    """What each child of the program said. They reach the backend through the environment alone, as users do."""
    hosted = {"HF_ENDPOINT": backend.address, "HF_TOKEN": "hf_writer"} if hasattr(backend, "address") else {}
    command = [sys.executable, str(PROGRAM), *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **hosted, **environment}, timeout=570
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(params=["folder", "s3", "gcs", AZURE, "huggingface"])
def reachable(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_home: Any) -> Any:
    """A backend of each kind that other processes can reach."""
    return make_home(request.param)


def test_of_16_processes_with_one_version_exactly_one_wins(reachable, make_package, tmp_path) -> None:
    folders = [make_package(card=f"{CARD}Card {number}\n") for number in range(PROCESSES)]
    outcomes = children(reachable, "race", reachable.hub.where, *folders)
    winners = [outcome["done"] for outcome in outcomes if "done" in outcome]
    losers = [outcome for outcome in outcomes if "done" not in outcome]
    assert len(winners) == 1, outcomes
    assert {loser["error"] for loser in losers} == {"VersionExistsError"}, losers
    assert all("was published before and is another package" in loser["message"] for loser in losers)
    assert all(winners[0] in loser["message"] for loser in losers)
    for reference in ("trec@1.0.0", "trec"):
        fetched = reachable.hub.fetch(reachable.hub.resolve(reference), tmp_path / reference)
        assert fetched.digest == winners[0]


def test_of_many_packages_under_one_version_exactly_one_wins(backend, make_package, tmp_path) -> None:
    folders = [make_package(card=f"{CARD}Card {number}\n") for number in range(PROCESSES)]
    barrier = Barrier(PROCESSES)

    def publish(folder: Path) -> str | None:
        barrier.wait()
        try:
            return backend.hub.publish(folder).digest
        except VersionExistsError:
            return None

    with ThreadPoolExecutor(PROCESSES) as pool:
        digests = [digest for digest in pool.map(publish, folders) if digest]
    assert len(digests) == 1
    assert backend.hub.fetch(backend.hub.resolve("trec@1.0.0"), tmp_path / "fetched").digest == digests[0]


def test_of_many_publishers_of_one_package_all_succeed(backend, make_package, tmp_path) -> None:
    folder, barrier = make_package(), Barrier(PROCESSES)

    def publish(_: int) -> str:
        barrier.wait()
        return backend.hub.publish(folder).digest

    with ThreadPoolExecutor(PROCESSES) as pool:
        assert set(pool.map(publish, range(PROCESSES))) == {read_package(folder).digest}
    backend.hub.fetch(backend.hub.resolve("trec"), tmp_path / "fetched")


@pytest.mark.soak
def test_a_push_killed_anywhere_leaves_a_whole_version_or_none(reachable, make_package, tmp_path) -> None:
    package, hub = make_package(head=1 << 18), reachable.hub
    outcomes = children(reachable, "push", hub.where, package, KILLS, 11)
    assert "done" in outcomes[0], outcomes[0]
    assert sum("killed" in outcome for outcome in outcomes) == KILLS, outcomes
    for number in range(1, len(outcomes)):
        target = tmp_path / "fetched" / str(number)
        try:
            hub.fetch(hub.resolve(f"trec@1.0.{number}"), target / "first")
        except NotFoundError:
            assert not target.exists() or not any(target.iterdir())
        published = hub.publish(package, version=f"1.0.{number}")
        assert hub.fetch(published, target / "second").digest == published.digest
    assert hub.resolve("trec").version == f"1.0.{len(outcomes) - 1}"
    assert [entry.error for entry in hub.list()] == [None] * len(outcomes)


@pytest.mark.soak
def test_a_pull_killed_anywhere_leaves_a_sound_cache(reachable, make_package, tmp_path, monkeypatch) -> None:
    published = reachable.hub.publish(make_package(head=1 << 19))
    arguments = ("pull", reachable.hub.where, "trec@1.0.0", KILLS, 12)
    outcomes = children(reachable, *arguments, CACHES=str(tmp_path))
    assert "done" in outcomes[0], outcomes[0]
    assert sum("killed" in outcome for outcome in outcomes) == KILLS, outcomes
    for number in range(1, len(outcomes)):
        cache = PackageCache(tmp_path / str(number))
        if cache.holds(published.digest):
            assert validate_package(cache.root / "packages" / published.digest[7:]).digest == published.digest
        monkeypatch.setenv("SPARSEHUB_CACHE", str(cache.root))
        pulled = pull("trec@1.0.0", reachable.hub)
        assert pulled.manifest.digest == published.digest
        assert validate_package(pulled.folder).digest == published.digest
        assert not list((cache.root / "partial").glob("*/*"))


def test_every_object_and_folder_is_on_disk_before_the_tag_that_promises_it(
    make_package, tmp_path, monkeypatch
) -> None:
    root, package, synced, fsync = tmp_path / "hub", make_package(), [], os.fsync

    def record(descriptor: int) -> None:
        synced.append((os.fstat(descriptor).st_ino, (root / "tags").exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    open_hub(root).publish(package)
    promised = [root, *root.glob("blobs/**/*"), *root.glob("manifests/**/*")]
    assert len(promised) > WRITES
    assert {path.stat().st_ino for path in promised} <= {inode for inode, tagged in synced if not tagged}
    assert {path.stat().st_ino for path in [root, *root.glob("tags/**/*")]} <= {
        inode for inode, tagged in synced if tagged
    }


# Each child of this program publishes one package into a hub of its own and is killed at one write, before or after it.
STEPS = """
import os, signal, sys
from pathlib import Path
import sparsehub.package.validation
from sparsehub.hub.folder_blob_store import FolderBlobStore
from sparsehub.hub.blob_store_backend import BlobStoreBackend
from sparsehub.hub.package_hub import PackageHub

package, hubs = Path(sys.argv[1]), Path(sys.argv[2])

class Mortal(FolderBlobStore):
    step, last = 0, 0

    def create(self, path, data):
        self.beat()
        created = super().create(path, data)
        self.beat()
        return created

    def send(self, *arguments):
        self.beat()
        super().send(*arguments)
        self.beat()

    def beat(self):
        if self.step == self.last:
            os.kill(os.getpid(), signal.SIGKILL)
        self.step += 1

for step in range(int(sys.argv[3])):
    child = os.fork()
    if child == 0:
        objects = Mortal(hubs / str(step))
        objects.last = step
        PackageHub(BlobStoreBackend(objects)).publish(package)
        os._exit(0)
    print(os.WTERMSIG(os.waitpid(child, 0)[1]))
"""


def test_a_publisher_killed_at_each_write_leaves_a_whole_version_or_none(make_package, tmp_path) -> None:
    package, hubs = make_package(), tmp_path / "hubs"
    command = [sys.executable, "-c", STEPS, str(package), str(hubs), str(2 * WRITES)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["9"] * (2 * WRITES)
    present = []
    for step in range(2 * WRITES):
        hub = open_hub(hubs / str(step))
        try:
            hub.fetch(hub.resolve("trec@1.0.0"), tmp_path / "fetched" / f"{step}-first")
            present.append(step)
        except NotFoundError:
            assert not (tmp_path / "fetched" / f"{step}-first").exists()
        published = hub.publish(package)
        assert hub.fetch(published, tmp_path / "fetched" / f"{step}-second").digest == published.digest
        assert hub.resolve("trec") == published
    assert present == [2 * WRITES - 1]
