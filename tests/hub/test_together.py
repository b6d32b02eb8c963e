"""Publishers that race, and publishers that die."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

from sparsehub.errors import NotFoundError, VersionExistsError
from sparsehub.hub import open_hub
from sparsehub.package import read_package

THREADS = 16
WRITES = 5  # delta, head, card, manifest, tag

# Each child of this program publishes one package into a hub of its own and is killed: at every write, before and
# after it, and then at random times. It forks so that torch is imported once.
KILLED = """
import os, random, signal, sys, time
from pathlib import Path
import sparsehub.package
from sparsehub.hub.objects import FolderObjects
from sparsehub.hub.store import StoreHub

package, hubs, writes = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])

class Mortal(FolderObjects):
    step, last = 0, None

    def create(self, path, data):
        self.beat()
        created = super().create(path, data)
        self.beat()
        return created

    def beat(self):
        if self.step == self.last:
            os.kill(os.getpid(), signal.SIGKILL)
        self.step += 1
        if self.last is None:
            time.sleep(0.004)

def run(name, last, wait):
    child = os.fork()
    if child == 0:
        objects = Mortal(hubs / name)
        objects.last = last
        try:
            StoreHub(objects).publish(package)
        finally:
            os._exit(0)
    if last is None:
        time.sleep(wait)
        os.kill(child, signal.SIGKILL)
    print(name, os.WTERMSIG(os.waitpid(child, 0)[1]))

for step in range(2 * writes):
    run(f"step-{step}", step, 0)
random.seed(11)
for turn in range(12):
    run(f"time-{turn}", None, random.uniform(0, 0.15))
"""


def test_of_many_packages_under_one_version_exactly_one_wins(home, make_package, tmp_path) -> None:
    folders = [make_package(card=f"# Card {number}\n") for number in range(THREADS)]
    barrier = Barrier(THREADS)

    def publish(folder: Path) -> str | None:
        barrier.wait()
        try:
            return home.hub.publish(folder).digest
        except VersionExistsError:
            return None

    with ThreadPoolExecutor(THREADS) as pool:
        digests = [digest for digest in pool.map(publish, folders) if digest]
    assert len(digests) == 1
    assert home.hub.fetch(home.hub.resolve("trec@1.0.0"), tmp_path / "fetched").digest == digests[0]


def test_of_many_publishers_of_one_package_all_succeed(home, make_package, tmp_path) -> None:
    folder, barrier = make_package(), Barrier(THREADS)

    def publish(_: int) -> str:
        barrier.wait()
        return home.hub.publish(folder).digest

    with ThreadPoolExecutor(THREADS) as pool:
        assert set(pool.map(publish, range(THREADS))) == {read_package(folder).digest}
    home.hub.fetch(home.hub.resolve("trec"), tmp_path / "fetched")


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


def test_a_publisher_killed_anywhere_leaves_a_whole_version_or_none(make_package, tmp_path) -> None:
    package, hubs = make_package(head=1 << 19), tmp_path / "hubs"
    command = [sys.executable, "-c", KILLED, str(package), str(hubs), str(WRITES)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    signals = dict(line.split() for line in lines)
    assert len(signals) == 2 * WRITES + 12
    assert all(signals[f"step-{step}"] == "9" for step in range(2 * WRITES))
    present = []
    for name in signals:
        hub, target = open_hub(hubs / name), tmp_path / "fetched" / name
        try:
            hub.fetch(hub.resolve("trec@1.0.0"), target / "first")
            present.append(name)
        except NotFoundError:
            assert not target.exists() or not any(target.iterdir())
        published = hub.publish(package)
        assert hub.fetch(published, target / "second").digest == published.digest
    assert [name for name in present if name.startswith("step")] == [f"step-{2 * WRITES - 1}"]
