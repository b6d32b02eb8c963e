"""Documents that are changed by compare-and-swap: no change is lost, whatever others do meanwhile, or dies."""

from __future__ import annotations

import multiprocessing
import os
import signal
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from filelock import FileLock

from sparsehub.errors import ConflictError, UsageError
from sparsehub.hub import documents, memory_hub
from sparsehub.hub.blob_store import ObjectDocument
from sparsehub.hub.blob_store_backend import BlobStoreBackend
from sparsehub.hub.documents import ATTEMPTS, Document, FileDocument, change
from sparsehub.hub.folder_blob_store import FolderBlobStore

MANY = 8


@pytest.fixture(params=["file", "folder", "memory"])
def document(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Document:
    monkeypatch.setattr(documents, "wait_before", lambda attempt: None)
    if request.param == "file":
        return FileDocument(tmp_path / "folder" / "document")
    if request.param == "folder":
        folder = FolderBlobStore(tmp_path / "hub")
        folder.prepare()  # a hub that is not there cannot be read
        return ObjectDocument(folder, "catalogs/document")
    backend = memory_hub().backend
    assert isinstance(backend, BlobStoreBackend)
    return ObjectDocument(backend.objects, "catalogs/document")


def increase(data: bytes | None) -> bytes:
    return str(int(data or b"0") + 1).encode()


def disturbed(document: Document, edit: Callable[[bytes | None], bytes]) -> Callable[[bytes | None], bytes]:
    """An edit before whose writing somebody else changes the document."""

    def late(data: bytes | None) -> bytes:
        change(document, edit)
        return edit(data)

    return late


def test_a_document_begins_with_its_first_change(document: Document) -> None:
    assert change(document, increase) == b"1" and change(document, increase) == b"2"
    found = document.read()
    assert found is not None and found[0] == b"2"


def test_only_what_was_read_is_replaced(document: Document) -> None:
    assert document.replace(b"1", None) and not document.replace(b"2", None)
    found = document.read()
    assert found is not None and document.replace(b"3", found[1]) and not document.replace(b"4", found[1])


def test_an_edit_that_gives_nothing_leaves_the_document_alone(document: Document) -> None:
    assert change(document, lambda data: None) is None and document.read() is None
    change(document, increase)
    assert change(document, lambda data: None) == b"1"


def test_an_edit_sees_the_document_again_after_a_lost_race(document: Document) -> None:
    seen = []

    def edit(data: bytes | None) -> bytes:
        seen.append(data)
        return (disturbed(document, increase) if len(seen) < 3 else increase)(data)

    assert change(document, edit) == b"3" and seen == [None, b"1", b"2"]


def test_who_loses_every_race_is_told(document: Document) -> None:
    with pytest.raises(ConflictError, match="others keep changing it"):
        change(document, disturbed(document, increase))
    assert change(document, increase) == str(ATTEMPTS + 1).encode()


def test_no_change_is_lost_where_many_change_at_once(tmp_path: Path) -> None:
    document = FileDocument(tmp_path / "document")
    with ThreadPoolExecutor(MANY) as workers:
        list(workers.map(lambda _: change(document, increase), range(MANY)))
    assert change(document, increase) == str(MANY + 1).encode()


def hold(path: Path, held: object) -> None:
    with FileLock(path):
        held.set()  # type: ignore[attr-defined]
        signal.pause()


def test_a_killed_writer_releases_the_document(tmp_path: Path) -> None:
    document = FileDocument(tmp_path / "document")
    context = multiprocessing.get_context("spawn")
    held = context.Event()
    writer = context.Process(target=hold, args=(tmp_path / ".document.lock", held))
    writer.start()
    assert held.wait(60) and writer.pid is not None
    with ThreadPoolExecutor(1) as workers:
        changed = workers.submit(change, document, increase)
        assert not changed.done() and document.read() is None
        os.kill(writer.pid, signal.SIGKILL)
        assert changed.result(60) == b"1"
    writer.join(60)


def test_a_private_file_is_its_owners_and_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "keys").symlink_to(tmp_path / "mounted")
    change(FileDocument(tmp_path / "keys", private=True), increase)
    assert (tmp_path / "keys").is_symlink() and (tmp_path / "mounted").read_bytes() == b"1"
    assert stat.S_IMODE((tmp_path / "mounted").stat().st_mode) == 0o600


def test_a_path_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for use in (lambda d: d.read(), lambda d: change(d, increase)):
        with pytest.raises(UsageError, match="cannot be used"):
            use(FileDocument(tmp_path / "file" / "document"))
