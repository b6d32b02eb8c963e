"""Nothing that a hub holds is believed: whoever changes an object is found out, and nothing is left behind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sparsehub.errors import FormatError, HubError, IntegrityError, NotFoundError
from sparsehub.files import canonical_json, sha256_bytes
from sparsehub.hub import open_hub
from sparsehub.package import read_manifest


def assert_refused(backend, tmp_path: Path, kinds=(IntegrityError,)) -> None:
    target = tmp_path / "target"
    target.mkdir(exist_ok=True)
    with pytest.raises(kinds):
        backend.hub.fetch(backend.hub.resolve("trec@1.0.0"), target / "fetched")
    assert list(target.iterdir()) == []


def test_one_flipped_bit_in_any_file_of_any_home_is_refused(backend, make_package, tmp_path) -> None:
    backend.hub.publish(make_package())
    paths = [path for path in backend.paths() if not path.startswith(("tags", "channels"))]
    assert len(paths) == 4  # manifest, delta, head, card
    for path in paths:
        good = backend.read(path)
        for position in (0, len(good) // 2, len(good) - 1):
            bad = bytearray(good)
            bad[position] ^= 1
            backend.overwrite(path, bytes(bad))
            assert_refused(backend, tmp_path)
        backend.overwrite(path, good)
    backend.hub.fetch(backend.hub.resolve("trec"), tmp_path / "whole")


@pytest.mark.parametrize("kind", ["blobs", "manifests", "tags"])
def test_one_flipped_bit_anywhere_is_refused(store_home, make_package, tmp_path, kind) -> None:
    store_home.hub.publish(make_package())
    paths = store_home.paths(kind)
    assert paths
    for path in paths:
        good = store_home.read(path)
        for position in (0, len(good) // 2, len(good) - 1):
            bad = bytearray(good)
            bad[position] ^= 1
            store_home.overwrite(path, bytes(bad))
            # A tag can become another well-formed digest: then there is no such package.
            assert_refused(store_home, tmp_path, (IntegrityError, NotFoundError) if kind == "tags" else IntegrityError)
        store_home.overwrite(path, good)
    store_home.hub.fetch(store_home.hub.resolve("trec"), tmp_path / "whole")


@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: data + b"x", lambda data: b""])
def test_a_blob_of_another_size_is_refused(store_home, make_package, tmp_path, change) -> None:
    store_home.hub.publish(make_package())
    for path in store_home.paths("blobs"):
        good = store_home.read(path)
        store_home.overwrite(path, change(good))
        assert_refused(store_home, tmp_path)
        store_home.overwrite(path, good)


def test_a_blob_that_is_larger_than_its_store_says_is_cut_off(store_home, make_package, tmp_path, monkeypatch) -> None:
    """The size that a store states and the bytes that it sends are two things."""
    store_home.hub.publish(make_package())
    objects, taken = store_home.hub.backend.objects, []
    honest = type(objects).stream

    def endless(self, path: str, *part: int | None):
        answer = honest(self, path, *part)
        if not path.startswith("blobs"):
            return answer

        def chunks():
            for _ in range(1000):
                taken.append(1)
                yield b"\0" * 4096

        return answer[0], chunks()

    monkeypatch.setattr(type(objects), "stream", endless)
    assert_refused(store_home, tmp_path)
    assert len(taken) <= 3  # a chunk of each file


def test_a_lost_blob_and_a_lost_manifest_are_named(store_home, make_package, tmp_path) -> None:
    store_home.hub.publish(make_package())
    blob, manifest = store_home.paths("blobs")[0], store_home.paths("manifests")[0]
    good = store_home.read(blob)
    store_home.raw.delete(blob)
    assert_refused(store_home, tmp_path)
    store_home.overwrite(blob, good)
    store_home.raw.delete(manifest)
    assert_refused(store_home, tmp_path, NotFoundError)


def test_another_sound_manifest_under_a_digest_is_refused_with_both_digests(store_home, make_package, tmp_path) -> None:
    published = store_home.hub.publish(make_package())
    other = read_manifest(make_package(version="6.6.6"))
    store_home.overwrite(store_home.paths("manifests")[0], other.to_bytes())
    with pytest.raises(IntegrityError) as caught:
        store_home.hub.fetch(published, tmp_path / "fetched")
    assert published.digest in str(caught.value)
    assert other.digest in str(caught.value)


def test_a_package_whose_hashes_fit_but_which_is_not_sound_gets_no_name(store_home, make_package, tmp_path) -> None:
    """Somebody can publish garbage without our client, all digests right."""
    folder = make_package()
    manifest = read_manifest(folder)
    garbage = b"\0" * manifest.files["delta.safetensors"].size
    table = manifest.to_bytes().replace(
        manifest.files["delta.safetensors"].sha256.encode(), sha256_bytes(garbage).encode()
    )
    store_home.hub.publish(folder)
    store_home.overwrite(f"blobs/sha256/{sha256_bytes(garbage)[7:]}", garbage)
    store_home.overwrite(f"manifests/sha256/{sha256_bytes(table)[7:]}", table)
    store_home.overwrite("tags/trec/1.0.0", canonical_json({"digest": sha256_bytes(table)}))
    assert_refused(store_home, tmp_path, FormatError)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"sha256:" + b"0" * 64,
        b'{"digest":"sha256:../../../etc"}',
        b'{"digest":7}',
        b'{"digest":"sha256:' + b"0" * 64 + b'","digest":"sha256:' + b"1" * 64 + b'"}',
        b'{"digest":"sha256:' + b"0" * 64 + b'","more":1}',
        b"{}",
        b"[" * 900,
        b" " * 2000,
        b"\xff",
    ],
)
def test_a_malformed_tag_is_refused(store_home, make_package, tmp_path, content) -> None:
    store_home.hub.publish(make_package())
    store_home.overwrite("tags/trec/1.0.0", content)
    assert_refused(store_home, tmp_path)
    with pytest.raises(IntegrityError):  # and nobody publishes over it
        store_home.hub.publish(make_package())


def test_an_over_large_manifest_is_refused_unread(store_home, make_package, tmp_path, monkeypatch) -> None:
    store_home.hub.publish(make_package())
    monkeypatch.setattr("sparsehub.hub.blob_store_backend.MAX_PACKAGE_JSON_BYTES", 100)
    with pytest.raises(IntegrityError, match="too large"):
        store_home.hub.fetch(store_home.hub.resolve("trec"), tmp_path / "fetched")


def test_publishing_finds_a_damaged_blob_that_it_would_vouch_for(store_home, make_package) -> None:
    store_home.hub.publish(make_package())
    path = store_home.paths("blobs")[0]
    good = store_home.read(path)
    for bad in (good[:-1], bytes(len(good))):
        store_home.overwrite(path, bad)
        with pytest.raises(IntegrityError):
            store_home.hub.publish(make_package(version="2.0.0"))
    assert store_home.paths("tags") == ["tags/trec/1.0.0"]


def test_a_listing_shows_what_is_damaged_beside_what_is_whole(store_home, make_package) -> None:
    for version in ("1.0.0", "2.0.0", "3.0.0"):
        last = store_home.hub.publish(make_package(version=version))
    store_home.overwrite("tags/trec/2.0.0", b"damaged")
    store_home.overwrite(f"manifests/sha256/{last.digest[7:]}", b"damaged")
    store_home.overwrite("tags/trec/not a version", b"stray")
    stray, first, second, third = store_home.hub.list()
    assert first.error is None
    assert "damaged" in second.error
    assert "damaged" in third.error
    assert third.digest == last.digest
    assert stray.version == "not a version"
    assert stray.error
    assert store_home.hub.resolve("trec").version == "3.0.0"


# What only a folder can hold


@pytest.fixture
def root(make_package, tmp_path: Path) -> Path:
    open_hub(tmp_path / "hub").publish(make_package())
    return tmp_path / "hub"


@pytest.mark.parametrize("path", ["tags/trec/1.0.0", "tags/trec", "tags", "blobs", "blobs/sha256", "manifests/sha256"])
def test_a_symbolic_link_in_a_folder_hub_is_not_followed(root, make_package, tmp_path, path) -> None:
    (root / path).rename(tmp_path / "elsewhere")
    (root / path).symlink_to(tmp_path / "elsewhere")
    hub = open_hub(root)
    with pytest.raises(HubError, match="symbolic link"):
        hub.fetch(hub.resolve("trec@1.0.0"), tmp_path / "fetched")
    before = sorted(tmp_path.glob("elsewhere/**/*"))
    with pytest.raises(HubError, match="symbolic link"):
        hub.publish(make_package())
    assert sorted(tmp_path.glob("elsewhere/**/*")) == before


def test_a_dangling_link_is_refused_too(root, make_package, tmp_path) -> None:
    (root / "tags/trec/2.0.0").symlink_to(tmp_path / "nowhere")
    with pytest.raises(HubError, match="symbolic link"):
        open_hub(root).resolve("trec@2.0.0")
    with pytest.raises(HubError, match="symbolic link"):
        open_hub(root).publish(make_package(version="2.0.0"))
    assert not (tmp_path / "nowhere").exists()


def test_a_pipe_is_refused_and_never_waited_on(root) -> None:
    os.mkfifo(root / "tags/trec/2.0.0")
    with pytest.raises(HubError, match="special file"):
        open_hub(root).resolve("trec@2.0.0")


def test_a_folder_in_the_place_of_a_tag_is_never_taken_for_one(root, make_package) -> None:
    (root / "tags/trec/2.0.0").mkdir()
    with pytest.raises(NotFoundError):
        open_hub(root).resolve("trec@2.0.0")
    with pytest.raises(HubError, match="something else is there"):
        open_hub(root).publish(make_package(version="2.0.0"))


def test_odd_names_in_a_folder_hide_nothing(root, tmp_path) -> None:
    for odd in (b"bad\xff", b"a\x1b[31mb", b"1.0.0#1", b"2.0.0#17"):
        (root / "tags/trec" / os.fsdecode(odd)).write_bytes(b"x")
    (root / "tags/link").symlink_to(tmp_path)
    (root / "tags/README.md").write_bytes(b"stray")
    entries = {(entry.name, entry.version): entry.error for entry in open_hub(root).list()}
    assert entries.pop(("trec", "1.0.0")) is None
    assert set(entries) == {("link", ""), ("trec", "bad\\udcff"), ("trec", "a\\x1b[31mb")}
    assert all(entries.values())
    assert open_hub(root).resolve("trec").version == "1.0.0"
