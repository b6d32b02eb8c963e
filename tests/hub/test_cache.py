"""The cache that processes share: filled once, proved at every use, bounded, never emptied under a reader."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sparsehub.errors import FormatError, HubError, IntegrityError, NotFoundError, UnreachableError, UsageError
from sparsehub.hub import open_hub
from sparsehub.hub.cache import PackageCache
from sparsehub.hub.package_loader import load_package, pull
from sparsehub.package import validate_package

MANY = 12


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PackageCache:
    monkeypatch.setenv("SPARSEHUB_CACHE", str(tmp_path / "cache"))
    return PackageCache()


@pytest.fixture
def hub(tmp_path: Path, make_package):
    found = open_hub(tmp_path / "hub")
    for version in ("1.0.0", "1.1.0", "1.2.0"):
        found.publish(make_package(version=version, head=1000))
    return found


class Counted:
    """A hub that counts what is fetched from it."""

    def __init__(self, hub):
        self.hub, self.fetched = hub, []

    def __getattr__(self, name):
        return getattr(self.hub, name)

    def fetch(self, resolved, *arguments, **options):
        self.fetched.append(resolved.digest)
        time.sleep(0.05)
        return self.hub.fetch(resolved, *arguments, **options)


def test_a_package_is_fetched_once(cache, hub) -> None:
    counted = Counted(hub)
    first = pull("trec@1.0.0", counted)
    assert pull("trec@1.0.0", counted).folder == first.folder == cache.root / "packages" / first.resolved.digest[7:]
    assert load_package("trec@1.0.0", counted).digest == first.resolved.digest
    assert len(counted.fetched) == 1
    assert validate_package(first.folder).digest == first.resolved.digest


def test_of_many_threads_one_fetches_and_all_get_it(cache, hub) -> None:
    counted = Counted(hub)
    with ThreadPoolExecutor(MANY) as workers:
        folders = set(workers.map(lambda _: pull("trec@1.0.0", counted).folder, range(MANY)))
    assert len(folders) == len(counted.fetched) == 1


def test_many_processes_share_one_cache(cache, hub, tmp_path) -> None:
    """Each says how many bytes it moved: one moves them all."""
    code = """
import json, sys
from sparsehub.hub import open_hub
from sparsehub.hub.package_loader import pull
moved = [0]
pulled = pull("trec@1.1.0", open_hub(sys.argv[1]), progress=lambda done, total: moved.append(done))
print(json.dumps({"folder": str(pulled.folder), "moved": moved[-1]}))
"""
    command = [sys.executable, "-c", code, str(tmp_path / "hub")]
    children = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ) for _ in range(4)]
    said = [json.loads(child.communicate(timeout=120)[0]) for child in children]
    assert len({line["folder"] for line in said}) == 1
    assert sorted(line["moved"] > 0 for line in said) == [False, False, False, True]


@pytest.mark.parametrize("name", ["delta.safetensors", "head.safetensors", "README.md", "sparsehub.json"])
def test_a_flipped_byte_in_the_cache_is_found_and_mended(cache, hub, name: str) -> None:
    pulled = pull("trec@1.0.0", hub)
    file = pulled.folder / name
    good = file.read_bytes()
    for place in (0, len(good) // 2, len(good) - 1):
        spoilt = bytearray(good)
        spoilt[place] ^= 1
        file.write_bytes(spoilt)
        assert pull("trec@1.0.0", hub).manifest == pulled.manifest
        assert file.read_bytes() == good
        file.write_bytes(spoilt)
        assert load_package("trec@1.0.0", hub).digest == pulled.resolved.digest
        assert file.read_bytes() == good
    assert len(list((cache.root / "damaged").iterdir())) == 6


def test_a_damaged_copy_is_never_used_where_the_hub_cannot_mend_it(cache, hub, tmp_path) -> None:
    pulled = pull("trec@1.0.0", hub)
    (pulled.folder / "README.md").write_bytes(b"changed")
    for blob in (tmp_path / "hub/blobs/sha256").iterdir():
        blob.write_bytes(b"gone bad")
    with pytest.raises(FormatError):
        pull("trec@1.0.0", hub)
    with pytest.raises(FormatError):
        load_package("trec@1.0.0", hub)
    assert not cache.holds(pulled.resolved.digest)


def test_another_package_under_a_digest_is_found(cache, hub) -> None:
    first, second = pull("trec@1.0.0", hub), pull("trec@1.1.0", hub)
    for file in second.folder.iterdir():
        (first.folder / file.name).write_bytes(file.read_bytes())
    assert pull("trec@1.0.0", hub).manifest.version == "1.0.0"


def test_pinned_bytes_that_are_here_need_no_hub(cache, hub, tmp_path) -> None:
    pulled = pull("trec@1.0.0", hub)
    (tmp_path / "hub").rename(tmp_path / "gone")
    assert load_package(pulled.resolved.pinned, hub).digest == pulled.resolved.digest
    with pytest.raises(NotFoundError, match="no hub"):
        load_package("trec@1.0.0", hub)
    with pytest.raises(NotFoundError, match="another task"):
        load_package(f"sst2@{pulled.resolved.digest}", hub)


def test_an_interrupted_fetch_goes_on_where_it_stopped(cache, hub, monkeypatch) -> None:
    opened, broken, honest = [], [], type(hub.backend).open_file

    def failing(self, name, digest, file, record, start, stop):
        if file == "head.safetensors" and not broken:
            broken.append(start)
            raise HubError("the power went")
        opened.append((file, start))
        return honest(self, name, digest, file, record, start, stop)

    monkeypatch.setattr(type(hub.backend), "open_file", failing)
    with pytest.raises(HubError, match="the power went"):
        pull("trec@1.0.0", hub)
    digest = hub.resolve("trec@1.0.0").digest
    assert not cache.holds(digest)
    kept = {p.name: p.stat().st_size for p in (cache.root / "partial" / digest[7:]).iterdir()}
    before = len(opened)
    pulled = pull("trec@1.0.0", hub)
    whole = {name for name, size in kept.items() if size == pulled.manifest.files[name].size}
    assert not whole & {file for file, _ in opened[before:]}
    assert not (cache.root / "partial" / digest[7:]).exists()


def test_the_least_recently_used_go_first(cache, hub) -> None:
    sizes = {}
    for age, version in enumerate(("1.0.0", "1.1.0", "1.2.0")):
        pulled = pull(f"trec@{version}", hub)
        sizes[version] = sum(file.stat().st_size for file in pulled.folder.iterdir())
        os.utime(pulled.folder, (1000 + age, 1000 + age))
    pull("trec@1.0.0", hub)  # used again: now the youngest
    removed = cache.shrink(sizes["1.0.0"] + sizes["1.2.0"])
    assert [kept.path.name for kept in removed] == [hub.resolve("trec@1.1.0").digest[7:]]
    assert cache.size() <= sizes["1.0.0"] + sizes["1.2.0"]
    cache.shrink(0)
    assert cache.size() == 0
    assert list((cache.root / "locks").iterdir()) == []


def test_a_fetch_makes_room(cache, hub, tmp_path, monkeypatch) -> None:
    one = pull("trec@1.0.0", hub)
    size = sum(file.stat().st_size for file in one.folder.iterdir())
    settings = tmp_path / "settings" / "sparsehub" / "hub.yaml"
    settings.parent.mkdir(parents=True)
    settings.write_text(f"cache_bytes: {int(1.5 * size)}\n")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "settings"))
    two = pull("trec@1.1.0", hub)
    assert two.folder.is_dir() and not one.folder.exists()


def test_what_is_read_is_never_removed(cache, hub) -> None:
    resolved = hub.resolve("trec@1.0.0")
    with cache.package(resolved, hub) as folder:
        assert cache.shrink(0) == []
        assert validate_package(folder).digest == resolved.digest
        with ThreadPoolExecutor(1) as other:  # readers do not wait for each other
            assert other.submit(lambda: pull("trec@1.0.0", hub).folder).result(10) == folder
    assert [kept.path for kept in cache.shrink(0)] == [folder]


def test_readers_and_a_cache_that_is_emptied_all_the_time(cache, hub) -> None:
    stop, failed = threading.Event(), []

    def empty() -> None:
        while not stop.is_set():
            cache.shrink(0)

    def read(number: int) -> None:
        for _ in range(6):
            try:
                assert load_package(f"trec@1.{number % 3}.0", hub).manifest.version == f"1.{number % 3}.0"
            except HubError as error:
                if "removed from the cache" not in str(error):  # that is what it is for
                    failed.append(error)
            except BaseException as error:
                failed.append(error)

    emptier = threading.Thread(target=empty)
    emptier.start()
    with ThreadPoolExecutor(4) as readers:
        list(readers.map(read, range(4)))
    stop.set()
    emptier.join()
    assert failed == []


def test_what_a_killed_process_left_is_removed_after_a_while(cache, hub) -> None:
    pull("trec@1.0.0", hub)
    left = cache.root / "packages" / ".sparsehub-tmp-abc"
    left.mkdir()
    (left / "delta.safetensors").write_bytes(b"half")
    assert cache.shrink() == []
    os.utime(left, (1000, 1000))
    assert [kept.path for kept in cache.shrink()] == [left]
    assert not left.exists() and cache.holds(hub.resolve("trec@1.0.0").digest)


def test_pull_into_a_folder_copies_proved_bytes(cache, hub, tmp_path) -> None:
    pulled = pull("trec@1.0.0", hub, out=tmp_path / "mine")
    assert pulled.folder == tmp_path / "mine"
    assert validate_package(tmp_path / "mine").digest == pulled.resolved.digest
    (tmp_path / "mine" / "README.md").write_text("edited")
    assert pull("trec@1.0.0", hub).manifest == pulled.manifest, "the cache has its own bytes"
    with pytest.raises(UsageError, match="exists already"):
        pull("trec@1.0.0", hub, out=tmp_path / "mine")
    with pytest.raises(FormatError):
        load_package(str(tmp_path / "mine"), None)


def test_a_package_larger_than_the_disk_is_refused_before_a_byte_is_fetched(cache, hub, monkeypatch) -> None:
    monkeypatch.setattr("sparsehub.hub.package_hub.shutil.disk_usage", lambda _: type("Usage", (), {"free": 10})())
    monkeypatch.setattr(type(hub.backend), "open_file", lambda *_: pytest.fail("asked for bytes"))
    with pytest.raises(UsageError, match="no room"):
        pull("trec@1.0.0", hub)


def test_a_hub_that_changes_its_mind_about_a_digest_is_refused(cache, hub, monkeypatch) -> None:
    other = hub.resolve("trec@1.1.0").digest
    data = hub.backend.read_manifest("trec", other)
    monkeypatch.setattr(type(hub.backend), "read_manifest", lambda *_: data)
    with pytest.raises(IntegrityError):
        pull("trec@1.0.0", hub)


def test_a_hub_out_of_reach_is_told_as_such(cache, hub, monkeypatch) -> None:
    def dead(*_: object) -> None:
        raise UnreachableError("no route to host")

    monkeypatch.setattr(type(hub.backend), "read_tag", dead)
    with pytest.raises(UnreachableError, match="no route"):
        pull("trec@1.0.0", hub)


@contextlib.contextmanager
def another_user() -> Iterator[None]:
    """Inside, this process has the rights of somebody else."""
    os.setegid(65534)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_two_users_share_a_cache_that_one_of_them_fills(make_package, monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        place.chmod(0o755)
        (place / "home").mkdir(mode=0o777)
        monkeypatch.setenv("SPARSEHUB_CACHE", str(place / "cache"))
        monkeypatch.setenv("XDG_CONFIG_HOME", str(place / "home"))
        shared = open_hub(place / "hub")
        for version in ("1.0.0", "1.1.0"):
            shared.publish(make_package(version=version, head=1000))
        folder = pull("trec@1.0.0", shared).folder
        with another_user():
            assert pull("trec@1.0.0", shared).folder == folder
            assert load_package("trec@1.0.0", shared).manifest.version == "1.0.0"
            with pytest.raises(UsageError, match=r"the cache folder .* cannot be used; found: Permission denied"):
                pull("trec@1.1.0", shared)
        assert pull("trec@1.1.0", shared).manifest.version == "1.1.0"
