"""sparsehub.lock: what was pinned stays what it was, or is refused with both digests."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sparsehub.errors import IntegrityError, NotFoundError, UnreachableError, UsageError
from sparsehub.files import canonical_json
from sparsehub.hub import open_hub
from sparsehub.hub.lockfile import Lock, Pin, lock_references, read_lock, write_lock
from sparsehub.hub.package_loader import load_package, pull


@pytest.fixture
def hub(tmp_path: Path, make_package):
    found = open_hub(tmp_path / "hub")
    for name in ("trec", "sst2"):
        for version in ("1.0.0", "1.1.0"):
            found.publish(make_package(name=name, version=version))
    return found


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEHUB_CACHE", str(tmp_path / "cache"))


def change(root: Path, version: str, digest: str) -> None:
    """What nobody may do: write a published version anew."""
    (root / "tags/trec" / version).write_bytes(canonical_json({"digest": digest}))


def test_a_lock_pins_name_version_and_digest(hub, tmp_path) -> None:
    hub.tag("sst2", "stable", hub.resolve("sst2@1.0.0").digest)
    lock = lock_references(["trec", "sst2@stable"], hub, None)
    assert lock.tasks == (
        Pin("sst2", "1.0.0", hub.resolve("sst2@1.0.0").digest),
        Pin("trec", "1.1.0", hub.resolve("trec@1.1.0").digest),
    )
    write_lock(tmp_path / "sparsehub.lock", lock)
    assert read_lock(tmp_path / "sparsehub.lock") == lock
    table = json.loads((tmp_path / "sparsehub.lock").read_text())
    assert table["hub"] == hub.where and table["lock_version"] == 1


def test_what_is_locked_is_what_is_pulled(hub, make_package) -> None:
    lock = lock_references(["trec"], hub, None)
    hub.publish(make_package(version="2.0.0"))
    assert hub.resolve("trec").version == "2.0.0"
    assert pull("trec", hub, lock=lock).manifest.version == "1.1.0"
    assert load_package("trec@1.1.0", hub, lock=lock).manifest.version == "1.1.0"
    with pytest.raises(UsageError, match="locked otherwise"):
        pull("trec@2.0.0", hub, lock=lock)
    with pytest.raises(NotFoundError, match="not in the lock file"):
        pull("sst2", hub, lock=lock)


def test_a_digest_that_changed_under_a_version_is_refused_with_both(hub, tmp_path) -> None:
    lock, other = lock_references(["trec@1.0.0"], hub, None), hub.resolve("trec@1.1.0").digest
    change(tmp_path / "hub", "1.0.0", other)
    for attempt in (
        lambda: pull("trec", hub, lock=lock),
        lambda: load_package("trec", hub, lock=lock),
        lambda: lock_references(["trec@1.0.0"], hub, lock),
        lambda: lock.resolve("trec", hub),
    ):
        with pytest.raises(IntegrityError, match="not what it was when it was locked") as caught:
            attempt()
        assert other in str(caught.value) and lock.tasks[0].digest in str(caught.value)


def test_a_lock_moves_on_where_it_is_asked_to(hub) -> None:
    lock = lock_references(["trec@1.0.0", "sst2"], hub, None)
    moved = lock_references(["trec"], hub, lock)
    assert {pin.name: pin.version for pin in moved.tasks} == {"trec": "1.1.0", "sst2": "1.1.0"}


def test_a_pinned_digest_reference_is_locked_under_its_version(hub) -> None:
    digest = hub.resolve("trec@1.0.0").digest
    assert lock_references([f"trec@{digest}"], hub, None).tasks == (Pin("trec", "1.0.0", digest),)


def test_a_locked_package_that_is_here_is_used_when_the_hub_is_out_of_reach(hub, monkeypatch) -> None:
    lock = lock_references(["trec"], hub, None)
    first = pull("trec", hub, lock=lock)

    def dead(*_: object) -> None:
        raise UnreachableError("no route to host")

    monkeypatch.setattr(type(hub.backend), "read_tag", dead)
    assert pull("trec", hub, lock=lock).folder == first.folder
    with pytest.raises(UnreachableError):
        pull("trec@1.1.0", hub)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"hub":"x","tasks":[{"name":"trec","version":"1.0","digest":"sha256:x"}],"lock_version":1}',
        '{"hub":"x","tasks":[{"name":"../trec","version":"1.0","digest":"sha256:' + "0" * 64 + '"}],"lock_version":1}',
        '{"hub":"x","tasks":[],"lock_version":2}',
        '{"hub":"x","tasks":[],"more":1}',
        '{"hub":"x","hub":"y","tasks":[]}',
        '{"hub":"x","tasks":[' + ",".join(['{"name":"a","version":"1","digest":"sha256:' + "0" * 64 + '"}'] * 2) + "]}",
    ],
)
def test_a_malformed_lock_file_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "sparsehub.lock"
    path.write_text(content)
    with pytest.raises(UsageError):
        read_lock(path)
    with pytest.raises(UsageError, match="no lock file"):
        read_lock(tmp_path / "nowhere.lock")


def test_a_lock_without_tasks_is_one() -> None:
    with pytest.raises(NotFoundError, match="sparsehub lock trec --hub here"):
        Lock("here").pin("trec")
