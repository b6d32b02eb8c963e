"""sparsehub catalog: the verbs, on a catalogue in a file and in a hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sparsehub.hub import open_hub


@pytest.fixture(scope="module")
def hub(tiny_tasks: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub")
    for version in ("1.0.0", "2.0.0"):
        open_hub(folder).publish(tiny_tasks.write("topic", version=version, seed=int(version[0])))
    return folder


@pytest.mark.parametrize("inside", [True, False])
def test_a_task_from_its_first_version_to_its_last(run: Any, hub: Path, tmp_path: Path, inside: bool) -> None:
    where = f"{hub}#production" if inside else str(tmp_path / "catalog.json")
    source = () if inside else ("--hub", hub)

    def entry() -> dict[str, Any]:
        return json.loads(run("catalog", "status", where, "--json").out)["tasks"]["topic"]

    assert "no catalogue at" in run("catalog", "status", where).err
    assert run("catalog", "add", where, "topic@1.0.0", *source, "--pin", "--items-per-second", "5").code == 0
    assert run("catalog", "canary", where, "topic@2.0.0", "--percent", "10", *source).code == 0
    assert (entry()["stable"]["version"], entry()["canary"]["version"], entry()["canary_percent"]) == (
        "1.0.0",
        "2.0.0",
        10,
    )
    shown = run("catalog", "status", where).out
    assert "revision 2, 1 tasks" in shown and "2.0.0 to 10%" in shown and "yes" in shown
    assert run("catalog", "promote", where, "topic").code == 0
    assert entry()["stable"]["version"] == "2.0.0" and entry()["canary"] is None
    assert run("catalog", "rollback", where, "topic", "--revision", "1").code == 2
    assert run("catalog", "rollback", where, "topic", "--revision", "3").code == 0
    assert run("catalog", "set", where, "topic", "--version", "2.0.0", "--no-pin", *source).code == 0
    assert run("catalog", "set", where, "topic", "--items-per-second", "0").code == 0
    found = entry()
    assert found["stable"]["version"] == "2.0.0" and not found["pinned"] and found["items_per_second"] is None
    assert [target["version"] for target in found["before"]] == ["1.0.0"]
    assert run("catalog", "remove", where, "topic").code == 0
    assert json.loads(run("catalog", "status", where, "--json").out) == {"revision": 8, "tasks": {}}


@pytest.mark.parametrize("inside", [True, False])
def test_the_variable_is_the_hub_of_a_catalogue_that_lies_in_none(
    run: Any, hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inside: bool
) -> None:
    where = f"{hub}#of-its-own" if inside else str(tmp_path / "catalog.json")
    monkeypatch.setenv("SPARSEHUB_HUB", str(tmp_path / "nowhere") if inside else str(hub))
    assert run("catalog", "add", where, "topic@1.0.0").code == 0
    assert run("catalog", "canary", where, "topic@2.0.0").code == 0
    assert run("catalog", "set", where, "topic", "--version", "2.0.0").code == 0
    found = json.loads(run("catalog", "status", where, "--json").out)["tasks"]["topic"]
    assert found["stable"]["digest"] == open_hub(hub).resolve("topic@2.0.0").digest
    assert "nowhere" in run("catalog", "add", where, "topic@1.0.0", "--hub", tmp_path / "nowhere").err


def test_what_is_not_there_changes_nothing(run: Any, hub: Path, tmp_path: Path) -> None:
    where = str(tmp_path / "catalog.json")
    assert "give --hub" in run("catalog", "add", where, "topic").err
    assert run("catalog", "add", where, "topic@9.0.0", "--hub", hub).code == 2
    assert "no task 'topic'" in run("catalog", "promote", where, "topic").err
    assert not Path(where).exists()
