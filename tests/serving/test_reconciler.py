"""An endpoint that follows its catalogue, whatever happens to it."""

from __future__ import annotations

import dataclasses
import errno
import functools
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from serving.auth import ADMIN, Authenticator, Key, KeyRing
from serving.auth.keys import new_secret
from serving.catalog import Catalog, CatalogEntry, CatalogTarget, change_catalog, changes, open_catalog
from sparsehub.errors import UsageError
from sparsehub.files import sha256_bytes
from sparsehub.hub import open_hub


@dataclasses.dataclass
class World:
    """A hub with packages, a catalogue, and the endpoint that follows it."""

    hub: Path
    where: str
    server: Any
    targets: Mapping[str, CatalogTarget]
    references: Mapping[str, Callable[[Any], list[float]]]  # by digest

    def change(self, edit: Callable[[Catalog], Catalog]) -> None:
        change_catalog(open_catalog(self.where), edit)
        self.server.reconciler.follower.look()

    def ask(self, model: str, key: str | None = None, inputs: Any = "the fox") -> Any:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return self.server.client.post("/v1/classify", json={"model": model, "input": inputs}, headers=headers)

    def answered(self, model: str, key: str | None = None) -> str:
        """The name of the target that answers, whose scores are those of its own materialised model."""
        response = self.ask(model, key)
        assert response.status_code == 200, response.text
        body = response.json()
        assert body["data"][0]["probs"] == pytest.approx(self.references[body["digest"]]("the fox"), abs=1e-4)
        (name,) = [name for name, target in self.targets.items() if target.digest == body["digest"]]
        assert body["task"].endswith(f"@{self.targets[name].version}")
        return name


ADMIN_KEY = new_secret()
CALLERS = [new_secret() for _ in range(6)]
RING = KeyRing(
    (
        Key("boss", sha256_bytes(ADMIN_KEY.encode()), ADMIN),
        *(Key(f"team-{i}", sha256_bytes(key.encode())) for i, key in enumerate(CALLERS)),
    )
)


@pytest.fixture(scope="module")
def hub(
    tiny_tasks: Any, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, CatalogTarget], dict[str, Any]]:
    """A hub with `three` in versions 1 to 3 and `seven`; their targets; what plain transformers answers."""
    folder = tmp_path_factory.mktemp("hub")
    made = {f"three{n}": tiny_tasks.write("three", labels=2 + n, version=f"{n}.0.0", seed=40 + n) for n in (1, 2, 3)}
    made["seven"] = tiny_tasks.write("seven", labels=7, seed=2)
    targets, references = {}, {}
    for name, package in made.items():
        found = open_hub(folder).publish(package)
        targets[name] = CatalogTarget(found.version or "", found.digest)
        references[found.digest] = tiny_tasks.reference(package)
    return folder, targets, references


@pytest.fixture
def world(
    hub: Any, new_server: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Any]]:
    """world(entries, access): an endpoint that follows a catalogue of theirs, with a cache of the test's own.

    No entries: the catalogue that is there, if any.
    """
    monkeypatch.setenv("SPARSEHUB_CACHE", str(tmp_path / "cache"))
    folder, targets, references = hub
    with ExitStack() as stack:

        def new(
            entries: Mapping[str, CatalogEntry],
            access: Authenticator | None = None,
            *,
            start: bool = True,
            **settings: Any,
        ) -> World:
            where = str(tmp_path / "catalog.json")
            if entries:
                Path(where).write_bytes(Catalog(1, entries).to_bytes())
            options = {"access": access, "catalog": where, "hub": str(folder), **settings}
            server = stack.enter_context(new_server(start=start, **options))
            return World(folder, where, server, targets, references)

        yield new


def as_admin(it: World, verb: str, **body: Any) -> Any:
    headers = {"Authorization": f"Bearer {ADMIN_KEY}"}
    return it.server.client.post(f"/v1/admin/catalog/{verb}", json=body, headers=headers)


def audited(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    """The lines of the audit log."""
    return [json.loads(record.getMessage()) for record in caplog.records if record.name == "sparsehub.audit"]


def test_a_canary_promoted_and_rolled_back_by_an_admin_while_it_serves(
    world: Callable[..., World], caplog: pytest.LogCaptureFixture
) -> None:
    it = world({}, Authenticator(RING))
    act = functools.partial(as_admin, it)
    assert it.ask("three", CALLERS[0]).status_code == 404
    with caplog.at_level(logging.INFO, "sparsehub.audit"):
        assert act("add", reference="three@1.0.0", pinned=True).json()["revision"] == 1
        assert {it.answered("three", key) for key in CALLERS} == {"three1"}
        assert act("canary", reference="three@2.0.0", percent=50).status_code == 200
        split = [it.answered("three", key) for key in CALLERS]
        assert set(split) == {"three1", "three2"}
        assert split == [it.answered("three", key) for key in CALLERS]
        assert it.answered("three@1.0.0", CALLERS[0]) == "three1"
        assert it.answered("three@2.0.0", CALLERS[0]) == "three2"
        state = act("promote", task="three").json()
        assert state["tasks"]["three"]["stable"]["version"] == "2.0.0" and state["refused"] == {}
        assert {it.answered("three", key) for key in CALLERS} == {"three2"}
        assert it.ask("three@1.0.0", CALLERS[0]).status_code == 404
        assert act("rollback", task="three", revision=3).status_code == 200
        assert {it.answered("three", key) for key in CALLERS} == {"three1"}
        assert act("rollback", task="three", revision=3).status_code == 409
        assert act("set", task="three", version="3.0.0", pinned=False).status_code == 200
        assert it.answered("three", CALLERS[0]) == "three3"
        assert act("add", reference="nothing").status_code == 404
        assert act("remove", task="three").json()["tasks"] == {}
    assert it.ask("three", CALLERS[0]).status_code == 404
    lines = audited(caplog)
    assert [(line["act"].split()[1], line["outcome"]) for line in lines] == [
        ("add", "done"),
        ("canary", "done"),
        ("promote", "done"),
        ("rollback", "done"),
        ("rollback", "refused"),
        ("set", "done"),
        ("add", "refused"),
        ("remove", "done"),
    ]
    assert all(line["key"] == "boss" and len(line["request_id"]) == 32 for line in lines)


def test_it_follows_without_a_word_and_survives_a_restart(world: Callable[..., World], hub: Any) -> None:
    _, targets, _ = hub
    it = world({"three": CatalogEntry(targets["three1"])})
    change_catalog(open_catalog(it.where), lambda c: changes.move(c, "three", targets["three2"]))
    it.server.until(lambda: it.server.reconciler.revision == 2)
    assert it.answered("three") == "three2"
    again = world({})  # the same file, another process' engine
    assert again.answered("three") == "three2"
    listed = [model["id"] for model in again.server.client.get("/v1/models").json()["data"]]
    assert listed == ["tiny/bert", "three@2.0.0"]


def test_a_bad_entry_is_refused_and_what_was_good_serves_on(world: Callable[..., World], hub: Any) -> None:
    folder, targets, _ = hub
    it = world({"three": CatalogEntry(targets["three1"]), "seven": CatalogEntry(targets["seven"])})
    missing = CatalogTarget("9.0.0", sha256_bytes(b"nowhere"))
    it.change(lambda c: changes.move(changes.remove(c, "seven"), "three", missing))
    assert it.answered("three") == "three1"
    assert it.ask("seven").status_code == 404  # the sound part of the same change is taken over
    assert "three" in it.server.reconciler.refused

    damaged = folder / "manifests" / "sha256" / targets["three3"].digest.removeprefix("sha256:")
    content = damaged.read_bytes()
    damaged.write_bytes(content[:-2] + b" }")
    it.change(lambda c: changes.move(c, "three", targets["three3"]))
    assert it.answered("three") == "three1"
    assert set(it.server.reconciler.refused) == {"three"}
    damaged.write_bytes(content)
    it.server.reconciler._retry_at = 0.0
    it.server.reconciler.tidy()
    assert it.answered("three") == "three3" and it.server.reconciler.refused == {}


@pytest.mark.parametrize("damage", [b"{", b"", None])
def test_a_damaged_or_lost_catalogue_changes_nothing_not_even_after_a_restart(
    world: Callable[..., World], hub: Any, damage: bytes | None
) -> None:
    _, targets, _ = hub
    it = world({"three": CatalogEntry(targets["three2"])})
    path = Path(it.where)
    content = path.read_bytes()
    path.unlink() if damage is None else path.write_bytes(damage)
    with pytest.raises(UsageError):
        it.server.reconciler.follower.look()
    assert it.answered("three") == "three2"
    if damage is not None:
        assert world({}).answered("three") == "three2"
    path.write_bytes(content)
    it.server.reconciler.follower.look()
    assert it.server.reconciler.follower.error is None


def test_a_full_disk_keeps_nobody_from_following(
    world: Callable[..., World], hub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, targets, _ = hub
    it = world({"three": CatalogEntry(targets["three1"])})

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr("serving.catalog.reconciler.write_file", full)
    it.change(lambda c: changes.move(c, "three", targets["three2"]))
    assert it.answered("three") == "three2" and it.server.reconciler.follower.error is None


def test_a_task_that_is_removed_answers_what_has_begun_and_then_goes(world: Callable[..., World], hub: Any) -> None:
    _, targets, _ = hub
    it = world({"three": CatalogEntry(targets["three1"]), "seven": CatalogEntry(targets["seven"])}, start=False)
    engine, reconciler = it.server.engine, it.server.reconciler
    with ThreadPoolExecutor(1) as pool:
        begun = pool.submit(it.ask, "three")
        it.server.until(lambda: engine.waiting == 1)
        it.change(lambda c: changes.remove(c, "three"))
        reconciler.tidy()
        assert it.ask("three").status_code == 404
        assert reconciler.draining == 1 and len(engine.tasks) == 2
        while engine.step():
            pass
        response = begun.result(20)
    assert response.status_code == 200 and response.json()["digest"] == targets["three1"].digest
    it.server.until(lambda: reconciler.tidy() or len(engine.tasks) == 1)
    assert reconciler.draining == 0
    assert [status.task.name for status in engine.status()] == ["seven"]


def test_while_it_moves_every_request_is_answered_by_one_version_whole(world: Callable[..., World], hub: Any) -> None:
    _, targets, references = hub
    it = world({"three": CatalogEntry(targets["three1"])})
    done = threading.Event()
    texts = ["the fox", "a dog", "who wrote the book"]

    def client(_: int) -> set[str]:
        seen = set()
        while not done.is_set():
            response = it.ask("three", inputs=texts)
            assert response.status_code == 200, response.text
            body = response.json()
            for text, entry in zip(texts, body["data"], strict=True):
                assert len(body["labels"]) == entry["num_classes"]
                assert entry["probs"] == pytest.approx(references[body["digest"]](text), abs=1e-4)
            seen.add(body["digest"])
        return seen

    with ThreadPoolExecutor(4) as pool:
        clients = [pool.submit(client, number) for number in range(4)]
        try:
            for step in range(12):
                to = targets[f"three{1 + (step + 1) % 3}"]
                it.change(lambda c, to=to: changes.move(c, "three", to))  # type: ignore[misc]
        finally:
            done.set()
        seen = set().union(*(one.result(60) for one in clients))
    assert len(seen) > 1
    it.server.until(lambda: it.server.reconciler.tidy() or len(it.server.engine.tasks) == 1)


def test_contents_that_change_under_one_version_replace_each_other_in_place(
    world: Callable[..., World], hub: Any
) -> None:
    _, targets, _ = hub
    it = world({"three": CatalogEntry(targets["three1"])})
    same = CatalogTarget(targets["three1"].version, targets["three2"].digest)
    it.change(lambda c: changes.move(c, "three", same))
    assert it.ask("three@1.0.0").json()["digest"] == same.digest
    it.server.until(lambda: it.server.reconciler.tidy() or len(it.server.engine.tasks) == 1)


def test_a_tasks_quotas_hold_for_all_its_callers_together(world: Callable[..., World], hub: Any) -> None:
    _, targets, _ = hub
    quotas = CatalogEntry(targets["three1"], items_per_second=3.0)
    tokens = CatalogEntry(targets["seven"], tokens_per_second=0.01)
    it = world({"three": quotas, "seven": tokens}, Authenticator(RING))
    assert it.ask("three", CALLERS[0], ["a"] * 600).status_code == 200
    refused = it.ask("three", CALLERS[1])
    assert refused.status_code == 429 and "the quota of items of the task three" in refused.text
    assert it.ask("seven", CALLERS[0]).status_code == 200
    assert "the quota of tokens of the task seven" in it.ask("seven", CALLERS[1]).text


def test_pins_follow_the_catalogue(world: Callable[..., World], hub: Any) -> None:
    _, targets, _ = hub
    it = world({"three": CatalogEntry(targets["three1"], pinned=True)})
    assert [status.pinned for status in it.server.engine.status()] == [True]
    it.change(lambda c: changes.set_options(c, "three", pinned=False))
    assert [status.pinned for status in it.server.engine.status()] == [False]
    it.change(lambda c: changes.set_options(c, "three", pinned=True))
    assert [status.pinned for status in it.server.engine.status()] == [True]


def test_an_entry_that_fails_for_ever_is_tried_ever_more_rarely_and_keeps_nobody_else_waiting(
    world: Callable[..., World], hub: Any, caplog: pytest.LogCaptureFixture
) -> None:
    _, targets, _ = hub
    it = world({"three": CatalogEntry(targets["three1"])})
    missing = CatalogTarget("9.0.0", sha256_bytes(b"nowhere"))
    it.change(lambda c: changes.move(c, "three", missing))
    reconciler, pauses = it.server.reconciler, []
    for _ in range(10):
        reconciler._retry_at = 0.0
        reconciler.tidy()
        pauses.append(reconciler._retry_at - time.monotonic())
    assert [round(pause, -1) for pause in pauses[:3]] == [30, 60, 120] and 590 < pauses[-1] <= 600
    assert caplog.text.count("the catalogue's entry three is refused") == 1, "and is said once"
    assert it.answered("three") == "three1"
    it.change(lambda c: changes.add(c, "seven", CatalogEntry(targets["seven"])))
    assert it.ask("seven").status_code == 200
    assert reconciler._retry_at - time.monotonic() <= 15, "a change of the catalogue is taken over at once"


def test_a_catalogue_that_goes_back_is_served_and_said(
    world: Callable[..., World], hub: Any, caplog: pytest.LogCaptureFixture
) -> None:
    _, targets, _ = hub
    it = world({"three": CatalogEntry(targets["three1"])})
    old = Path(it.where).read_bytes()
    it.change(lambda c: changes.move(c, "three", targets["three2"]))
    assert it.answered("three") == "three2"
    Path(it.where).write_bytes(old)
    it.server.reconciler.reload()
    assert it.answered("three") == "three1"
    assert "the catalogue went back from revision 2 to 1" in caplog.text


@pytest.mark.parametrize("digits", [4_000, 5_000])
def test_a_number_without_end_changes_nothing(world: Callable[..., World], hub: Any, digits: int) -> None:
    _, targets, _ = hub
    it = world({"three": CatalogEntry(targets["three1"])}, Authenticator(RING))
    headers = {"authorization": f"Bearer {ADMIN_KEY}", "content-type": "application/json"}
    number = "9" * digits
    for act, body in {
        "canary": '{"reference":"three@2.0.0","percent":N}',
        "set": '{"task":"three","items_per_second":N}',
        "rollback": '{"task":"three","revision":N}',
        "add": '{"reference":"seven","tokens_per_second":N}',
    }.items():
        for sent in (number, f"-{number}", f"1e{number}"):
            answer = it.server.client.post(f"/v1/admin/catalog/{act}", content=body.replace("N", sent), headers=headers)
            assert answer.status_code in (400, 409), (act, sent[:4], answer.status_code, answer.text[:200])
    assert it.server.reconciler.revision == 1 and not it.server.reconciler.refused
