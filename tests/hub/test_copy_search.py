from __future__ import annotations

from pathlib import Path

import pytest

from sparsehub.errors import TrustError, UsageError, VersionExistsError
from sparsehub.hub import HubEntry, memory_hub, open_hub
from sparsehub.hub.copying import copy_package, references_of
from sparsehub.hub.search import Condition, Query, parse_condition, search


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEHUB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def source(tmp_path: Path, make_package):
    found = open_hub(tmp_path / "source")
    for version in ("1.0.0", "1.1.0"):
        found.publish(make_package(version=version))
    found.tag("trec", "stable", found.resolve("trec@1.0.0").digest)
    return found


def test_a_copy_is_the_same_package_in_every_home(backend, source, tmp_path) -> None:
    copied = copy_package("trec@1.0.0", source, backend.hub)
    assert copied == source.resolve("trec@1.0.0")
    assert backend.hub.resolve("trec@1.0.0") == copied
    backend.hub.fetch(copied, tmp_path / "fetched")
    assert copy_package("trec@1.0.0", source, backend.hub) == copied, "again is fine"


def test_whole_tasks_are_copied_with_their_channels(backend, source) -> None:
    for reference in references_of("trec", source):
        copy_package(reference, source, backend.hub)
    assert [entry.version for entry in backend.hub.list("trec")] == ["1.0.0", "1.1.0"]
    assert {name: c.target.version for name, c in backend.hub.channels("trec").items()} == {
        "stable": "1.0.0",
        "latest": "1.1.0",
    }


def test_a_name_that_was_given_later_is_copied(source) -> None:
    source.tag("trec", "1.0", source.resolve("trec@1.0.0").digest)
    target = memory_hub()
    copy_package("trec@1.0", source, target)
    assert {entry.version for entry in target.list("trec")} == {"1.0", "1.0.0"}


def test_a_version_that_is_another_package_there_is_left_alone(source, make_package) -> None:
    target = memory_hub()
    other = target.publish(make_package(card="---\nlibrary_name: sparsehub\n---\nOther.\n"))
    with pytest.raises(VersionExistsError):
        copy_package("trec@1.0.0", source, target)
    assert target.resolve("trec@1.0.0") == other


def test_the_policy_holds_for_copies_too(source, tmp_path) -> None:
    from sparsehub.package.policy import Policy

    key = tmp_path / "key.pub"
    key.write_text("")
    target = memory_hub()
    with pytest.raises(TrustError, match="not signed"):
        copy_package("trec", source, target, policy=Policy(True, {"team": key}))
    assert target.list() == []


ENTRIES = [
    HubEntry("trec", "1.0.0", kind="text-classification", backbone="org/MiniLM", fingerprint="sha256:abc",
          metrics={"test": {"accuracy": 0.96}, "validation": {"accuracy": 0.5}}),
    HubEntry("stsb", "2.0.0", kind="regression", backbone="org/MiniLM", fingerprint="sha256:abc", channels=("stable",),
          metrics={"validation": {"pearson": 0.84}}),
    HubEntry("ner", "1.0.0", kind="token-classification", backbone="org/bert", fingerprint="sha256:def"),
    HubEntry("bad", "1.0.0", error="damaged"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("query", "names"),
    [
        (Query(), ["trec", "stsb", "ner"]),
        (Query(text="ST"), ["stsb"]),
        (Query(backbone="minilm"), ["trec", "stsb"]),
        (Query(backbone="sha256:de"), ["ner"]),
        (Query(backbone="def"), ["ner"]),
        (Query(kind="regression"), ["stsb"]),
        (Query(tag="stable"), ["stsb"]),
        (Query(tag="1.0.0"), ["trec", "ner"]),
        (Query(conditions=(parse_condition("accuracy>=0.9"),)), ["trec"]),
        (Query(conditions=(parse_condition("validation:accuracy >= 0.9"),)), []),
        (Query(conditions=(parse_condition("pearson>0.8"), parse_condition("pearson<0.85"))), ["stsb"]),
        (Query(backbone="minilm", kind="regression", tag="1.0.0"), []),
    ],
)
def test_everything_that_is_asked_for_must_fit(query: Query, names: list[str]) -> None:
    assert [entry.name for entry in search(ENTRIES, query)] == names


@pytest.mark.parametrize(
    ("text", "condition"),
    [
        ("accuracy>=0.9", Condition(None, "accuracy", ">=", 0.9)),
        (" f1 < 1e-3 ", Condition(None, "f1", "<", 0.001)),
        ("test (majority):macro_f1>-1", Condition("test (majority)", "macro_f1", ">", -1.0)),
    ],
)
def test_conditions_are_read(text: str, condition: Condition) -> None:
    assert parse_condition(text) == condition


@pytest.mark.parametrize("text", ["", "accuracy", "accuracy=0.9", ">0.9", "accuracy>", "accuracy>high", "a>1>2", "a>-"])
def test_what_is_no_condition_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="not a condition"):
        parse_condition(text)
