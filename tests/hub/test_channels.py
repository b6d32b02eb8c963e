"""Channels move, remember and go back, on every backend alike; versions never do."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from sparsehub.errors import ConflictError, IntegrityError, NotFoundError, UsageError
from sparsehub.hub.channels import Channel, ChannelTarget

MOVES = 8


@pytest.fixture
def versions(backend, make_package) -> dict[str, str]:
    """Three versions of a task, to their digests."""
    return {v: backend.hub.publish(make_package(version=v)).digest for v in ("1.0.0", "1.1.0", "2.0.0")}


def test_a_channel_is_a_reference_that_moves(backend, versions) -> None:
    for version in ("1.0.0", "2.0.0", "1.1.0"):
        moved = backend.hub.tag("trec", "stable", versions[version])
        assert (moved.version, moved.digest, moved.channel) == (version, versions[version], "stable")
        found = backend.hub.resolve("trec@stable")
        assert (found.version, found.digest, found.channel) == (version, versions[version], "stable")
    backend.hub.tag("trec", "canary", versions["2.0.0"])
    assert backend.hub.resolve("trec@stable").version == "1.1.0"
    assert {name: c.target.version for name, c in backend.hub.channels("trec").items()} == {
        "stable": "1.1.0",
        "canary": "2.0.0",
        "latest": "2.0.0",
    }


def test_latest_follows_the_highest_release(backend, make_package) -> None:
    for version, expected in (("1.0.0-rc.1", "1.0.0-rc.1"), ("0.9.0", "0.9.0"), ("1.0.0", "1.0.0"), ("0.9.5", "1.0.0")):
        backend.hub.publish(make_package(version=version))
        assert backend.hub.resolve("trec").version == backend.hub.resolve("trec@latest").version == expected


def test_rollback_goes_back_step_by_step(backend, versions) -> None:
    for version in versions:
        backend.hub.tag("trec", "stable", versions[version])
    assert backend.hub.rollback("trec", "stable").version == "1.1.0"
    assert backend.hub.resolve("trec@stable").digest == versions["1.1.0"]
    assert backend.hub.rollback("trec", "stable").version == "1.0.0"
    with pytest.raises(UsageError, match="pointed at nothing before this"):
        backend.hub.rollback("trec", "stable")
    assert backend.hub.resolve("trec@stable").version == "1.0.0"
    assert backend.hub.resolve("trec").version == "2.0.0"


def test_a_repeated_publish_does_not_undo_a_rollback(backend, make_package) -> None:
    backend.hub.publish(make_package())
    broken = make_package(version="2.0.0")
    digest = backend.hub.publish(broken).digest
    assert backend.hub.rollback("trec", "latest").version == "1.0.0"
    backend.hub.publish(broken)
    assert backend.hub.resolve("trec").version == "1.0.0"
    backend.hub.publish(make_package(version="2.0.1"))
    assert backend.hub.resolve("trec").version == "2.0.1"
    assert backend.hub.tag("trec", "latest", digest).version == "2.0.0"  # who asks for it by name gets it
    assert backend.hub.resolve("trec").version == "2.0.0"


def test_a_move_that_expects_something_else_is_refused(backend, versions) -> None:
    first, second, third = versions.values()
    with pytest.raises(ConflictError, match="no such channel"):
        backend.hub.tag("trec", "stable", first, expected=second)
    backend.hub.tag("trec", "stable", first)
    with pytest.raises(ConflictError) as caught:
        backend.hub.tag("trec", "stable", third, expected=second)
    assert first in str(caught.value) and second in str(caught.value)
    assert backend.hub.tag("trec", "stable", third, expected=first).digest == third
    with pytest.raises(UsageError, match="a version never moves"):
        backend.hub.tag("trec", "1.0", first, expected=first)


def test_no_move_is_lost_where_many_move_at_once(backend, make_package) -> None:
    digests = [backend.hub.publish(make_package(version=f"1.0.{n}")).digest for n in range(MOVES)]
    with ThreadPoolExecutor(MOVES) as movers:
        list(movers.map(lambda digest: backend.hub.tag("trec", "stable", digest), digests))
    channel = backend.hub.channels("trec")["stable"]
    assert {channel.target.digest, *(target.digest for target in channel.before)} == set(digests)
    assert len(channel.before) == MOVES - 1


def test_of_many_who_expect_the_same_exactly_one_moves(backend, versions) -> None:
    first, second, third = versions.values()
    backend.hub.tag("trec", "stable", first)

    def move(digest: str) -> bool:
        try:
            return bool(backend.hub.tag("trec", "stable", digest, expected=first))
        except ConflictError:
            return False

    with ThreadPoolExecutor(MOVES) as movers:
        assert sum(movers.map(move, [second, third] * (MOVES // 2))) == 1


def test_an_unknown_channel_names_those_that_are_there(backend, versions) -> None:
    with pytest.raises(NotFoundError, match=r"no channel 'stable'.*latest, 2\.0\.0"):
        backend.hub.resolve("trec@stable")
    with pytest.raises(NotFoundError, match="no channel"):
        backend.hub.rollback("trec", "stable")
    with pytest.raises(UsageError, match="not a channel"):
        backend.hub.rollback("trec", "1.0.0")


def test_a_listing_shows_who_points_where(backend, versions) -> None:
    backend.hub.tag("trec", "stable", versions["1.1.0"])
    assert {entry.version: entry.channels for entry in backend.hub.list("trec")} == {
        "1.0.0": (),
        "1.1.0": ("stable",),
        "2.0.0": ("latest",),
    }
    (newest,) = backend.hub.list(newest=True)
    assert (newest.name, newest.version, newest.channels) == ("trec", "2.0.0", ("latest",))
    with pytest.raises(NotFoundError, match="did you mean 'trec'"):
        backend.hub.list("trek")


def test_history_is_bounded_and_survives_being_written(backend, versions) -> None:
    first, second, _ = versions.values()
    for _turn in range(3):
        backend.hub.tag("trec", "stable", first)
        backend.hub.tag("trec", "stable", second)
    channel = backend.hub.channels("trec")["stable"]
    assert len(channel.before) == 5
    many = Channel(channel.target, (ChannelTarget("1.0.0", first, "2026-01-01T00:00:00Z"),) * 100, (first,) * 100)
    assert len(many.to_bytes()) < 64 << 10


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b'{"before":[],"move":"","target":{"digest":"sha256:x","moved":"","version":"1.0"},"withdrawn":[]}',
        b'{"before":[],"move":"","target":{"digest":"sha256:'
        + b"0" * 64
        + b'","moved":"","version":"../1"},"withdrawn":[]}',
        b" " * 70_000,
        b"[" * 5_000,
        b"\xff",
    ],
)
def test_a_malformed_channel_is_refused_and_hides_no_version(store_home, make_package, content) -> None:
    store_home.hub.publish(make_package())
    store_home.overwrite("channels/trec/latest", content)
    with pytest.raises(IntegrityError):
        store_home.hub.resolve("trec")
    with pytest.raises(IntegrityError):
        store_home.hub.tag("trec", "latest", store_home.hub.resolve("trec@1.0.0").digest)
    assert [entry.version for entry in store_home.hub.list()] == ["1.0.0"]


def test_without_its_channel_a_bare_name_is_still_the_highest_version(store_home, make_package) -> None:
    for version in ("1.0.0", "2.0.0"):
        store_home.hub.publish(make_package(version=version))
    store_home.raw.delete("channels/trec/latest")
    assert store_home.hub.resolve("trec").version == "2.0.0"
    assert store_home.hub.resolve("trec@latest").version == "2.0.0"
