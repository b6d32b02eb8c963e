"""What every home of a hub does: a folder, memory, S3 and the Hugging Face Hub alike."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparsehub.errors import FormatError, NotFoundError, UsageError, VersionExistsError
from sparsehub.hub import Resolved
from sparsehub.package import read_manifest, read_package

CARD = "---\nlibrary_name: sparsehub\n---\n"

ABSENT = "sha256:" + "f" * 64


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_was_published_is_resolved_and_fetched_byte_for_byte(home, make_package, tmp_path) -> None:
    folder = make_package()
    published = home.hub.publish(folder)
    assert published == Resolved("trec", "1.0.0", read_package(folder).digest)
    assert home.hub.resolve("trec@1.0.0") == published
    manifest = home.hub.fetch(published, tmp_path / "fetched")
    assert manifest == read_manifest(folder)
    assert contents(tmp_path / "fetched") == contents(folder)


def test_a_digest_is_a_reference(home, make_package, tmp_path) -> None:
    published = home.hub.publish(make_package())
    resolved = home.hub.resolve(published.pinned)
    assert resolved == Resolved("trec", None, published.digest)
    assert home.hub.fetch(resolved, tmp_path / "fetched").digest == published.digest


def test_a_bare_name_is_the_highest_release(home, make_package) -> None:
    for version in ("1.9.0", "1.10.0", "2.0.0-rc.1", "1.2.0", "run-9"):
        home.hub.publish(make_package(version=version))
    assert home.hub.resolve("trec").version == "1.10.0"


def test_publishing_the_same_again_is_fine_and_sends_nothing(home, make_package) -> None:
    folder = make_package()
    published = home.hub.publish(folder)
    before = home.everything()
    assert home.hub.publish(folder) == published
    assert home.everything() == before


def test_a_version_is_never_written_twice(home, make_package) -> None:
    published = home.hub.publish(make_package())
    other = make_package(card=CARD + "Another.\n")
    before = home.everything()
    with pytest.raises(VersionExistsError) as caught:
        home.hub.publish(other)
    assert published.digest in str(caught.value)
    assert read_package(other).digest in str(caught.value)
    assert home.everything() == before
    assert home.hub.resolve("trec") == published


def test_publishing_under_another_name_and_version(home, make_package, tmp_path) -> None:
    folder = make_package()
    published = home.hub.publish(folder, name="questions", version="2.0")
    assert (published.name, published.version) == ("questions", "2.0")
    manifest = home.hub.fetch(home.hub.resolve("questions@2.0"), tmp_path / "fetched")
    assert (manifest.name, manifest.version) == ("questions", "2.0")
    assert manifest.files == read_manifest(folder).files
    with pytest.raises(NotFoundError):
        home.hub.resolve("trec")


@pytest.mark.parametrize(
    "wrong", [{"name": "../x"}, {"name": ""}, {"version": "a/b"}, {"version": "0" * 64}, {"version": "stable"}]
)
def test_unsafe_names_are_refused_before_anything_is_written(home, make_package, wrong) -> None:
    with pytest.raises(UsageError):
        home.hub.publish(make_package(), **wrong)
    assert home.everything() == {}


def test_an_unsound_package_is_refused_before_anything_is_written(home, make_package) -> None:
    folder = make_package()
    (folder / "README.md").write_bytes(b"# Edited\n")
    with pytest.raises(FormatError):
        home.hub.publish(folder)
    assert home.everything() == {}


def test_progress_ends_with_all_bytes(home, make_package) -> None:
    folder, calls = make_package(), []
    home.hub.publish(folder, progress=lambda sent, total: calls.append((sent, total)))
    size = sum(record.size for record in read_manifest(folder).files.values())
    assert calls[-1] == (size, size)
    assert calls == sorted(calls)


def test_an_unknown_task_names_the_nearest(home, make_package) -> None:
    home.hub.publish(make_package())
    with pytest.raises(NotFoundError, match="did you mean 'trec'"):
        home.hub.resolve("trek")
    with pytest.raises(NotFoundError, match="did you mean 'trec'"):
        home.hub.resolve("trek@1.0.0")
    with pytest.raises(NotFoundError, match="known: trec"):
        home.hub.resolve("sentiment")


def test_an_unknown_version_lists_the_versions_there(home, make_package) -> None:
    for version in ("1.9.0", "1.10.0"):
        home.hub.publish(make_package(version=version))
    with pytest.raises(NotFoundError, match=r"no version '3\.0'.*1\.10\.0, 1\.9\.0"):
        home.hub.resolve("trec@3.0")


def test_an_unknown_digest_and_the_digest_of_another_task(home, make_package, tmp_path) -> None:
    published = home.hub.publish(make_package())
    home.hub.publish(make_package(name="sst2"))
    with pytest.raises(NotFoundError):
        home.hub.resolve(f"trec@{ABSENT}")
    with pytest.raises(NotFoundError, match=r"another task|holds no package"):
        home.hub.resolve(f"sst2@{published.digest}")
    with pytest.raises(NotFoundError):
        home.hub.fetch(Resolved("trec", "1.0.0", ABSENT), tmp_path / "fetched")
    with pytest.raises(UsageError, match="not a digest"):
        home.hub.fetch(Resolved("trec", "1.0.0", "sha256:../../tags"), tmp_path / "fetched")
    assert not (tmp_path / "fetched").exists()


def test_an_existing_folder_is_left_alone(home, make_package, tmp_path) -> None:
    published = home.hub.publish(make_package())
    target = tmp_path / "mine"
    target.mkdir()
    (target / "notes.txt").write_text("keep")
    with pytest.raises(UsageError, match="exists already"):
        home.hub.fetch(published, target)
    assert contents(target) == {"notes.txt": b"keep"}


def test_a_listing_is_sorted_and_tells_what_each_version_is(home, make_package) -> None:
    for name, version in (("trec", "1.10.0"), ("sst2", "1.0.0"), ("trec", "1.9.0")):
        folder = make_package(name, version)
        home.hub.publish(folder)
    entries = home.hub.list()
    assert [(e.name, e.version) for e in entries] == [("sst2", "1.0.0"), ("trec", "1.9.0"), ("trec", "1.10.0")]
    entry = entries[1]
    assert entry.digest == read_package(folder).digest
    assert entry.size == sum(path.stat().st_size for path in folder.iterdir())
    assert (entry.kind, entry.backbone, entry.method) == ("text-classification", "tiny/bert", "magnitude")
    assert (entry.nnz, entry.density, entry.metrics) == (6, 6 / 32, {"test": {"accuracy": 0.75}})
    assert entry.error is None


def test_a_tag_is_one_more_name_written_once(home, make_package, tmp_path) -> None:
    first = home.hub.publish(make_package())
    second = home.hub.publish(make_package(version="1.1.0"))
    assert home.hub.tag("trec", "1.0", first.digest) == Resolved("trec", "1.0", first.digest)
    assert home.hub.tag("trec", "1.0", first.digest).digest == first.digest
    assert home.hub.resolve("trec@1.0").digest == first.digest
    with pytest.raises(VersionExistsError) as caught:
        home.hub.tag("trec", "1.0", second.digest)
    assert first.digest in str(caught.value)
    assert second.digest in str(caught.value)
    assert home.hub.fetch(home.hub.resolve("trec@1.0"), tmp_path / "fetched").version == "1.0.0"


def test_a_tag_needs_a_package_of_that_task_and_a_safe_name(home, make_package) -> None:
    published = home.hub.publish(make_package())
    home.hub.publish(make_package(name="sst2"))
    before = home.everything()
    with pytest.raises(NotFoundError):
        home.hub.tag("trec", "1.0", ABSENT)
    with pytest.raises(NotFoundError, match=r"another task|holds no package"):
        home.hub.tag("sst2", "1.0", published.digest)
    for tag in ("../stable", "", "a" * 64, "sha256", "Stable", "a--b/c"):
        with pytest.raises(UsageError):
            home.hub.tag("trec", tag, published.digest)
    assert home.everything() == before


def test_a_signature_travels_with_its_package(home, make_package, tmp_path) -> None:
    folder = make_package()
    published = home.hub.publish(folder)
    (folder / "model.sig").write_bytes(b"signed")
    assert home.hub.publish(folder) == published
    home.hub.fetch(published, tmp_path / "fetched")
    assert (tmp_path / "fetched" / "model.sig").read_bytes() == b"signed"
    (folder / "model.sig").write_bytes(b"signed by another")
    with pytest.raises(VersionExistsError, match="another signature"):
        home.hub.publish(folder)


def test_a_signed_package_keeps_its_name(home, make_package) -> None:
    folder = make_package()
    (folder / "model.sig").write_bytes(b"signed")
    with pytest.raises(UsageError, match="signed package"):
        home.hub.publish(folder, version="2.0.0")
    assert home.everything() == {}
