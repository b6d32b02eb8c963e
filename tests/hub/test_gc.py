"""What nobody needs goes; what anybody may need stays."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from pathlib import Path

import pytest

from sparsehub.errors import HubError, UsageError, VersionExistsError
from sparsehub.files import canonical_json
from sparsehub.hub.blob_store_backend import REUSABLE
from sparsehub.hub.gc import GRACE, find_garbage, remove_garbage

NOW = timedelta(0)


def paths(garbage) -> set[str]:
    return {item.path for item in garbage}


def test_a_publish_that_lost_leaves_garbage_and_nothing_else(store_home, make_package, tmp_path) -> None:
    hub = store_home.hub
    hub.publish(make_package())
    before = store_home.paths()
    assert find_garbage(hub, NOW) == []
    loser = make_package(card="---\nlibrary_name: sparsehub\n---\nAnother.\n")
    read_tag, looked = type(hub.backend).read_tag, []

    def late(*arguments):
        looked.append(arguments)
        return None if len(looked) == 1 else read_tag(*arguments)

    with pytest.MonkeyPatch.context() as patch:  # it finds out only at the very end
        patch.setattr(type(hub.backend), "read_tag", late)
        with pytest.raises(VersionExistsError):
            hub.publish(loser)
    garbage = find_garbage(hub, NOW)
    assert paths(garbage) == set(store_home.paths()) - set(before)
    assert len(garbage) == 2  # its card and its manifest
    assert find_garbage(hub) == [], "a publish may still be on its way"
    assert remove_garbage(hub, garbage) == [], "it is young"
    time.sleep(1.1)  # S3 counts whole seconds
    assert set(remove_garbage(hub, garbage, NOW)) == set(garbage)
    assert store_home.paths() == before
    hub.fetch(hub.resolve("trec"), tmp_path / "fetched")


def test_what_versions_and_channels_need_is_never_garbage(store_home, make_package, tmp_path) -> None:
    hub = store_home.hub
    digests = [hub.publish(make_package(version=f"1.{n}.0", head=4 + n)).digest for n in range(3)]
    hub.tag("trec", "stable", digests[0])
    hub.tag("trec", "stable", digests[1])
    for version in ("1.0.0", "1.1.0"):  # only channels, and their memory, hold these two now
        store_home.raw.delete(f"tags/trec/{version}")
    assert find_garbage(hub, NOW) == []
    store_home.raw.delete("channels/trec/stable")
    store_home.raw.delete("channels/trec/latest")
    garbage = find_garbage(hub, NOW)
    assert {f"manifests/sha256/{digest[7:]}" for digest in digests[:2]} <= paths(garbage)
    time.sleep(1.1)
    remove_garbage(hub, garbage, NOW)
    hub.fetch(hub.resolve("trec@1.2.0"), tmp_path / "fetched")


@pytest.mark.parametrize("path", ["tags/trec/1.0.0", "channels/trec/latest"])
def test_nothing_is_collected_where_a_name_cannot_be_read(store_home, make_package, path: str) -> None:
    store_home.hub.publish(make_package())
    store_home.overwrite(path, b"damaged")
    with pytest.raises(HubError, match="nothing is collected"):
        find_garbage(store_home.hub, NOW)


def test_nothing_is_collected_where_a_manifest_is_damaged(store_home, make_package) -> None:
    store_home.hub.publish(make_package())
    store_home.overwrite(store_home.paths("manifests")[0], b"damaged")
    with pytest.raises(HubError, match="nothing is collected"):
        find_garbage(store_home.hub, NOW)


def test_the_hugging_face_hub_cleans_up_after_itself(hf_home, make_package) -> None:
    hf_home.hub.publish(make_package())
    with pytest.raises(UsageError, match="cleans up after itself"):
        find_garbage(hf_home.hub)


@pytest.fixture
def folder_backend(make_home, tmp_path: Path):
    return make_home("folder")


def age(root: Path, hours: float) -> None:
    then = time.time() - hours * 3600
    for path in [*root.glob("blobs/sha256/*"), *root.glob("manifests/sha256/*")]:
        os.utime(path, (then, then))


def test_a_publisher_makes_young_what_it_leans_on(folder_backend, make_package, tmp_path) -> None:
    """Its blobs lie there for nobody since long ago; until it has its tag, they must not be collected."""
    hub, root, package = folder_backend.hub, tmp_path / "hub", make_package()
    hub.publish(package)
    (root / "tags/trec/1.0.0").unlink()
    (root / "channels/trec/latest").unlink()
    age(root, 100)
    garbage = find_garbage(hub)
    assert len(garbage) == 4
    create, tried = type(hub.backend).create_tag, []

    def collect_first(*arguments):
        tried.append(remove_garbage(hub, garbage))
        return create(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(hub.backend), "create_tag", collect_first)
        published = hub.publish(package)
    assert tried == [[]]
    assert hub.fetch(published, tmp_path / "fetched").digest == published.digest


def test_a_blob_that_is_collected_under_a_publisher_is_sent_again(folder_backend, make_package, tmp_path) -> None:
    hub, root, package = folder_backend.hub, tmp_path / "hub", make_package()
    hub.publish(package)
    store = type(hub.backend)._store

    def collected(self, *arguments):
        for blob in (root / "blobs/sha256").iterdir():
            blob.unlink()
        store(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(hub.backend), "_store", collected)
        published = hub.publish(package)
    hub.fetch(published, tmp_path / "fetched")


def test_what_a_killed_writer_left_is_collected(folder_backend, make_package, tmp_path) -> None:
    folder_backend.hub.publish(make_package())
    staged = tmp_path / "hub/blobs/sha256" / ("a" * 64 + "#1")
    staged.write_bytes(b"half")
    os.utime(staged, (1000, 1000))
    garbage = find_garbage(folder_backend.hub)
    assert paths(garbage) == {f"blobs/sha256/{staged.name}"}
    remove_garbage(folder_backend.hub, garbage)
    assert not staged.exists()


def test_the_ages_leave_a_publisher_half_a_day(folder_backend) -> None:
    assert REUSABLE * 2 == GRACE
    assert canonical_json({"a": 1}) == b'{"a":1}'
