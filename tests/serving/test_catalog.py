"""The catalogue: its changes, and who gets a canary."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.catalog import Catalog, CatalogEntry, CatalogTarget, change_catalog, changes, open_catalog, parse_catalog
from serving.catalog.router import Router, share_of
from sparsehub.errors import ConflictError, NotFoundError, UnknownTaskError, UsageError
from sparsehub.files import sha256_bytes
from sparsehub.hub import memory_hub
from sparsehub.hub.blob_store import ObjectDocument
from sparsehub.task_ref import parse_model

ONE, TWO, THREE = (CatalogTarget(f"{number}.0.0", sha256_bytes(b"%d" % number)) for number in (1, 2, 3))


def catalog_of(**entries: CatalogEntry) -> Catalog:
    return Catalog(1, entries)


# the changes


def test_a_canary_is_promoted_and_rolled_back() -> None:
    catalog = changes.add(Catalog(), "topic", CatalogEntry(ONE))
    tried = changes.canary(catalog, "topic", TWO, 5)
    assert tried.tasks["topic"] == CatalogEntry(ONE, TWO, 5)
    assert changes.rollback(tried, "topic").tasks["topic"] == CatalogEntry(ONE)
    promoted = changes.promote(tried, "topic")
    assert promoted.tasks["topic"] == CatalogEntry(TWO, before=(ONE,))
    moved = changes.move(promoted, "topic", THREE)
    assert moved.tasks["topic"] == CatalogEntry(THREE, before=(ONE, TWO))
    back = changes.rollback(changes.rollback(moved, "topic"), "topic")
    assert back.tasks["topic"] == CatalogEntry(ONE)
    assert (catalog.revision, back.revision) == (1, 6)
    assert changes.remove(back, "topic").tasks == {}
    assert changes.set_options(back, "topic", pinned=True, items_per_second=2.0).tasks["topic"].pinned


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: changes.add(c, "topic", CatalogEntry(TWO)), "in the catalogue already"),
        (lambda c: changes.remove(c, "topik"), "did you mean 'topic'"),
        (lambda c: changes.promote(c, "topic"), "has no canary"),
        (lambda c: changes.rollback(c, "topic"), "was never at another version"),
        (lambda c: changes.canary(c, "topic", ONE, 5), "is the stable version already"),
        (lambda c: changes.canary(c, "topic", TWO, 101), "a percentage"),
        (lambda c: changes.move(c, "topic", ONE), "at 1.0.0 already"),
        (lambda c: changes.set_options(c, "topic", items_per_second=-1.0), "not above 0"),
        (lambda c: changes.expect(c, 7), "revision 1"),
    ],
)
def test_a_change_that_makes_no_sense_says_so(change: Callable[[Catalog], object], message: str) -> None:
    with pytest.raises((UsageError, NotFoundError, ConflictError), match=message):
        change(catalog_of(topic=CatalogEntry(ONE)))


def test_a_catalogue_comes_back_from_its_own_bytes() -> None:
    catalog = catalog_of(topic=CatalogEntry(ONE, TWO, 12.5, True, 5.0, None, (THREE,)), trec=CatalogEntry(TWO))
    assert parse_catalog(catalog.to_bytes()) == catalog


SOUND = catalog_of(topic=CatalogEntry(ONE)).to_json()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b'{"revision": 1}',
        json.dumps({**SOUND, "owner": "me"}).encode(),
        json.dumps({**SOUND, "tasks": {"../x": SOUND["tasks"]["topic"]}}).encode(),
        json.dumps({**SOUND, "tasks": {"topic": {}}}).encode(),
        json.dumps({**SOUND, "tasks": {"topic": {"stable": {"version": "1", "digest": "abc"}}}}).encode(),
        json.dumps({**SOUND, "tasks": {"topic": {**SOUND["tasks"]["topic"], "canary_percent": -1}}}).encode(),
        json.dumps({**SOUND, "tasks": {"topic": {**SOUND["tasks"]["topic"], "items_per_second": 0}}}).encode(),
    ],
)
def test_a_damaged_catalogue_is_refused(content: bytes) -> None:
    with pytest.raises(UsageError):
        parse_catalog(content)


@pytest.mark.parametrize("place", ["file", "folder", "memory"])
def test_of_many_who_change_it_at_once_nobodys_change_is_lost(place: str, tmp_path: Path) -> None:
    documents = {
        "file": lambda: open_catalog(str(tmp_path / "c.json")),
        "folder": lambda: open_catalog(f"{tmp_path}/hub#production"),
        "memory": lambda: ObjectDocument(shared.backend.objects, "catalogs/production"),  # type: ignore[attr-defined]
    }
    shared = memory_hub()
    (tmp_path / "hub").mkdir()

    def work(worker: int) -> None:
        for step in range(4):
            name = f"t{worker}-{step}"
            change_catalog(documents[place](), functools.partial(changes.add, name=name, entry=CatalogEntry(ONE)))

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(work, range(3)))
    found = documents[place]().read()
    assert found is not None
    catalog = parse_catalog(found[0])
    assert (catalog.revision, len(catalog.tasks)) == (12, 12)


@pytest.mark.parametrize("location", ["#production", "./hub#Pro duction", "hf://team#production", "./hub#../x"])
def test_a_catalogue_lives_in_a_file_or_in_a_hubs_store(location: str) -> None:
    with pytest.raises(UsageError):
        open_catalog(location)


# who gets what


def router_of(**entries: CatalogEntry) -> Router:
    router = Router()
    router.use(entries)
    return router


@given(st.text(max_size=20), st.floats(0, 100), st.floats(0, 100))
def test_a_caller_of_a_canary_stays_with_it_as_its_share_grows(caller: str, less: float, more: float) -> None:
    less, more = sorted((less, more))

    def gets(percent: float) -> str:
        router = Router()
        router.use({"topic": CatalogEntry(ONE, TWO, percent)})
        return router.hold(parse_model("topic"), caller).digests[0]

    assert gets(less) == gets(less)
    if gets(less) == TWO.digest:
        assert gets(more) == TWO.digest
    assert gets(0) == ONE.digest and gets(100) == TWO.digest


def test_a_share_is_that_share_of_the_callers_and_other_ones_for_the_next_canary() -> None:
    callers = [f"team-{number}" for number in range(4000)]
    first = {caller for caller in callers if share_of("topic", TWO.digest, caller) < 20}
    second = {caller for caller in callers if share_of("topic", THREE.digest, caller) < 20}
    assert 0.17 < len(first) / len(callers) < 0.23
    assert 0.1 < len(first & second) / len(first) < 0.3


def test_a_reference_becomes_digests_and_what_is_not_served_is_unknown() -> None:
    router = router_of(topic=CatalogEntry(ONE, TWO, 0), trec=CatalogEntry(THREE))
    assert str(router.hold(parse_model("topic"), "a").model) == f"topic@{ONE.digest}"
    assert str(router.hold(parse_model("topic@2.0.0"), "a").model) == f"topic@{TWO.digest}"
    assert router.hold(parse_model(f"topic@{TWO.digest}"), "a").digests == (TWO.digest,)
    composed = router.hold(parse_model("topic@1.0.0 + trec*0.50"), "a")
    assert str(composed.model) == f"topic@{ONE.digest}+trec@{THREE.digest}*0.50"
    assert composed.digests == (ONE.digest, THREE.digest)
    for unknown in ("topic@3.0.0", f"topic@{THREE.digest}", "top", "topic+none", "topic*2+trec@9", "", "@"):
        with pytest.raises(UnknownTaskError):
            router.hold(parse_model(unknown), "a")
    with pytest.raises(UnknownTaskError, match="did you mean 'topic'"):
        router.hold(parse_model("topik"), "a")


def test_what_is_held_is_counted() -> None:
    router = router_of(topic=CatalogEntry(ONE))
    first, second = router.hold(parse_model("topic"), "a"), router.hold(parse_model("topic+topic"), "b")
    router.release(first)
    assert router.is_held(ONE.digest)
    router.release(second)
    assert not router.is_held(ONE.digest)
