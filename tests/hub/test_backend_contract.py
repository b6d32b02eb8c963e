"""What every backend of a hub does: a folder, memory, S3 and the Hugging Face Hub alike."""

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


def test_what_was_published_is_resolved_and_fetched_byte_for_byte(backend, make_package, tmp_path) -> None:
    folder = make_package()
    published = backend.hub.publish(folder)
    assert published == Resolved("trec", "1.0.0", read_package(folder).digest)
    assert backend.hub.resolve("trec@1.0.0") == published
    manifest = backend.hub.fetch(published, tmp_path / "fetched")
    assert manifest == read_manifest(folder)
    assert contents(tmp_path / "fetched") == contents(folder)


def test_a_digest_is_a_reference(backend, make_package, tmp_path) -> None:
    published = backend.hub.publish(make_package())
    resolved = backend.hub.resolve(published.pinned)
    assert resolved == Resolved("trec", None, published.digest)
    assert backend.hub.fetch(resolved, tmp_path / "fetched").digest == published.digest


def test_a_bare_name_is_the_highest_release(backend, make_package) -> None:
    for version in ("1.9.0", "1.10.0", "2.0.0-rc.1", "1.2.0", "run-9"):
        backend.hub.publish(make_package(version=version))
    assert backend.hub.resolve("trec").version == "1.10.0"


def test_publishing_the_same_again_is_fine_and_sends_nothing(backend, make_package) -> None:
    folder = make_package()
    published = backend.hub.publish(folder)
    before = backend.everything()
    assert backend.hub.publish(folder) == published
    assert backend.everything() == before


def test_a_version_is_never_written_twice(backend, make_package) -> None:
    published = backend.hub.publish(make_package())
    other = make_package(card=CARD + "Another.\n")
    before = backend.everything()
    with pytest.raises(VersionExistsError) as caught:
        backend.hub.publish(other)
    assert published.digest in str(caught.value)
    assert read_package(other).digest in str(caught.value)
    assert backend.everything() == before
    assert backend.hub.resolve("trec") == published


def test_publishing_under_another_name_and_version(backend, make_package, tmp_path) -> None:
    folder = make_package()
    published = backend.hub.publish(folder, name="questions", version="2.0")
    assert (published.name, published.version) == ("questions", "2.0")
    manifest = backend.hub.fetch(backend.hub.resolve("questions@2.0"), tmp_path / "fetched")
    assert (manifest.name, manifest.version) == ("questions", "2.0")
    stored = read_manifest(folder).files
    assert {**manifest.files, "README.md": None} == {**stored, "README.md": None}
    card = (tmp_path / "fetched" / "README.md").read_text()
    assert "# questions 2.0\n" in card and "trec" not in card, "the card is of the package as it is published"
    assert backend.hub.publish(folder, name="questions", version="2.0") == published, "the same again is fine"
    with pytest.raises(NotFoundError):
        backend.hub.resolve("trec")


@pytest.mark.parametrize(
    "wrong", [{"name": "../x"}, {"name": ""}, {"version": "a/b"}, {"version": "0" * 64}, {"version": "stable"}]
)
def test_unsafe_names_are_refused_before_anything_is_written(backend, make_package, wrong) -> None:
    with pytest.raises(UsageError):
        backend.hub.publish(make_package(), **wrong)
    assert backend.everything() == {}


def test_an_unsound_package_is_refused_before_anything_is_written(backend, make_package) -> None:
    folder = make_package()
    (folder / "README.md").write_bytes(b"# Edited\n")
    with pytest.raises(FormatError):
        backend.hub.publish(folder)
    assert backend.everything() == {}


def test_progress_ends_with_all_bytes(backend, make_package) -> None:
    folder, calls = make_package(), []
    backend.hub.publish(folder, progress=lambda sent, total: calls.append((sent, total)))
    size = sum(record.size for record in read_manifest(folder).files.values())
    assert calls[-1] == (size, size)
    assert calls == sorted(calls)


def test_an_unknown_task_names_the_nearest(backend, make_package) -> None:
    backend.hub.publish(make_package())
    with pytest.raises(NotFoundError, match="did you mean 'trec'"):
        backend.hub.resolve("trek")
    with pytest.raises(NotFoundError, match="did you mean 'trec'"):
        backend.hub.resolve("trek@1.0.0")
    with pytest.raises(NotFoundError, match="known: trec"):
        backend.hub.resolve("sentiment")


def test_an_unknown_version_lists_the_versions_there(backend, make_package) -> None:
    for version in ("1.9.0", "1.10.0"):
        backend.hub.publish(make_package(version=version))
    with pytest.raises(NotFoundError, match=r"no version '3\.0'.*1\.10\.0, 1\.9\.0"):
        backend.hub.resolve("trec@3.0")


def test_an_unknown_digest_and_the_digest_of_another_task(backend, make_package, tmp_path) -> None:
    published = backend.hub.publish(make_package())
    backend.hub.publish(make_package(name="sst2"))
    with pytest.raises(NotFoundError):
        backend.hub.resolve(f"trec@{ABSENT}")
    with pytest.raises(NotFoundError, match=r"another task|holds no package"):
        backend.hub.resolve(f"sst2@{published.digest}")
    with pytest.raises(NotFoundError):
        backend.hub.fetch(Resolved("trec", "1.0.0", ABSENT), tmp_path / "fetched")
    with pytest.raises(UsageError, match="not a digest"):
        backend.hub.fetch(Resolved("trec", "1.0.0", "sha256:../../tags"), tmp_path / "fetched")
    assert not (tmp_path / "fetched").exists()


def test_an_existing_folder_is_left_alone(backend, make_package, tmp_path) -> None:
    published = backend.hub.publish(make_package())
    target = tmp_path / "mine"
    target.mkdir()
    (target / "notes.txt").write_text("keep")
    with pytest.raises(UsageError, match="exists already"):
        backend.hub.fetch(published, target)
    assert contents(target) == {"notes.txt": b"keep"}


def test_a_listing_is_sorted_and_tells_what_each_version_is(backend, make_package) -> None:
    for name, version in (("trec", "1.10.0"), ("sst2", "1.0.0"), ("trec", "1.9.0")):
        folder = make_package(name, version)
        backend.hub.publish(folder)
    entries = backend.hub.list()
    assert [(e.name, e.version) for e in entries] == [("sst2", "1.0.0"), ("trec", "1.9.0"), ("trec", "1.10.0")]
    entry = entries[1]
    assert entry.digest == read_package(folder).digest
    assert entry.size == sum(path.stat().st_size for path in folder.iterdir())
    assert (entry.kind, entry.backbone, entry.method) == ("text-classification", "tiny/bert", "magnitude")
    assert (entry.nnz, entry.density, entry.metrics) == (6, 6 / 32, {"test": {"accuracy": 0.75}})
    assert entry.error is None


def test_a_tag_is_one_more_name_written_once(backend, make_package, tmp_path) -> None:
    first = backend.hub.publish(make_package())
    second = backend.hub.publish(make_package(version="1.1.0"))
    assert backend.hub.tag("trec", "1.0", first.digest) == Resolved("trec", "1.0", first.digest)
    assert backend.hub.tag("trec", "1.0", first.digest).digest == first.digest
    assert backend.hub.resolve("trec@1.0").digest == first.digest
    with pytest.raises(VersionExistsError) as caught:
        backend.hub.tag("trec", "1.0", second.digest)
    assert first.digest in str(caught.value)
    assert second.digest in str(caught.value)
    assert backend.hub.fetch(backend.hub.resolve("trec@1.0"), tmp_path / "fetched").version == "1.0.0"


def test_a_tag_needs_a_package_of_that_task_and_a_safe_name(backend, make_package) -> None:
    published = backend.hub.publish(make_package())
    backend.hub.publish(make_package(name="sst2"))
    before = backend.everything()
    with pytest.raises(NotFoundError):
        backend.hub.tag("trec", "1.0", ABSENT)
    with pytest.raises(NotFoundError, match=r"another task|holds no package"):
        backend.hub.tag("sst2", "1.0", published.digest)
    for tag in ("../stable", "", "a" * 64, "sha256", "Stable", "a--b/c"):
        with pytest.raises(UsageError):
            backend.hub.tag("trec", tag, published.digest)
    assert backend.everything() == before


def test_a_signature_travels_with_its_package(backend, make_package, tmp_path) -> None:
    folder = make_package()
    published = backend.hub.publish(folder)
    (folder / "model.sig").write_bytes(b"signed")
    assert backend.hub.publish(folder) == published
    backend.hub.fetch(published, tmp_path / "fetched")
    assert (tmp_path / "fetched" / "model.sig").read_bytes() == b"signed"
    (folder / "model.sig").write_bytes(b"signed by another")
    with pytest.raises(VersionExistsError, match="another signature"):
        backend.hub.publish(folder)


def test_a_signed_package_keeps_its_name(backend, make_package) -> None:
    folder = make_package()
    (folder / "model.sig").write_bytes(b"signed")
    with pytest.raises(UsageError, match="signed package"):
        backend.hub.publish(folder, version="2.0.0")
    assert backend.everything() == {}
