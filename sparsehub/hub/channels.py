"""Channels: names that move from version to version, and remember where they pointed before."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime

from sparsehub.errors import (
    ConflictError,
    FormatError,
    HubError,
    IntegrityError,
    NotFoundError,
    UnreachableError,
    UsageError,
)
from sparsehub.files import canonical_json, strict_json
from sparsehub.hub.backend import HubBackend
from sparsehub.hub.retry import wait_before
from sparsehub.schema import build
from sparsehub.task_ref import check_digest, check_tag

MAX_CHANNEL_BYTES = 64 << 10
REMEMBERED = 100  # moves
ATTEMPTS = 12  # of a move that others come before


@dataclass(frozen=True)
class ChannelTarget:
    """What a channel points at, or pointed at. moved: when, in UTC."""

    version: str
    digest: str
    moved: str


@dataclass(frozen=True)
class Channel:
    """A channel as it is stored.

    before: what it pointed at, the last one last; withdrawn: digests that it was rolled back from, which a repeated
    publish does not bring back; move: random, so that no two moves write the same bytes and none is taken for another.
    """

    target: ChannelTarget
    before: tuple[ChannelTarget, ...] = ()
    withdrawn: tuple[str, ...] = ()
    move: str = field(default_factory=lambda: secrets.token_hex(8))

    def to_bytes(self) -> bytes:
        return canonical_json(self)


Change = Callable[[Channel | None], Channel | None]
"""From what a channel is to what it shall be; None leaves it alone."""


def read_channel(backend: HubBackend, name: str, channel: str) -> Channel | None:
    """A channel, proved; None where there is none; raises `IntegrityError` for a malformed one."""
    found = backend.read_channel(name, channel)
    return None if found is None else _parsed(name, channel, found[0])


def change_channel(backend: HubBackend, name: str, channel: str, change: Change) -> Channel | None:
    """Move a channel by compare-and-swap: `change` sees the channel as it is at that moment, and again after each race.

    Returns the channel as it is now. Raises what `change` raises, and `HubError` where others always come before.
    """
    wanted: Channel | None = None
    for attempt in range(ATTEMPTS):
        found = backend.read_channel(name, channel)
        current = None if found is None else _parsed(name, channel, found[0])
        if wanted is not None and current is not None and current.move == wanted.move:
            return current  # our move went through, and the answer was lost
        wanted = change(current)
        if wanted is None:
            return current
        with suppress(UnreachableError):
            if backend.write_channel(name, channel, wanted.to_bytes(), None if found is None else found[1]):
                return wanted
        wait_before(min(attempt, 2))
    raise HubError(f"{name}@{channel} is moved by others all the time, or the hub cannot be reached", fix="try again")


def point_at(version: str, digest: str, expected: str | None) -> Change:
    """The change to another target. expected: the digest that must be there; raises `ConflictError` otherwise."""

    def change(current: Channel | None) -> Channel | None:
        if expected is not None and (current is None or current.target.digest != expected):
            found = "no such channel" if current is None else current.target.digest
            fix = "look at it again, then move it from there"
            raise ConflictError("the channel has moved meanwhile", found=found, expected=expected, fix=fix)
        if current is not None and (current.target.version, current.target.digest) == (version, digest):
            return None
        return _moved(current, version, digest)

    return change


def follow(version: str, digest: str, is_higher: Callable[[str, str], bool]) -> Change:
    """The change of `latest` by a publish: to a higher version only, and never to one that it was rolled back from."""

    def change(current: Channel | None) -> Channel | None:
        if current is not None and (digest in current.withdrawn or not is_higher(version, current.target.version)):
            return None
        return _moved(current, version, digest)

    return change


def step_back(name: str, channel: str) -> Change:
    """The change back to what the channel pointed at before; raises `NotFoundError` and `UsageError`."""

    def change(current: Channel | None) -> Channel:
        if current is None:
            raise NotFoundError(f"{name} has no channel {channel!r}")
        if not current.before:
            fix = "move it where you want it: sparsehub tag"
            problem = f"{name}@{channel} pointed at nothing before this"
            raise UsageError(problem, found=current.target.version, fix=fix)
        last = current.before[-1]
        withdrawn = (*(d for d in current.withdrawn if d != last.digest), current.target.digest)
        target = ChannelTarget(last.version, last.digest, _now())
        return Channel(target, current.before[:-1], withdrawn[-REMEMBERED:])

    return change


def _moved(current: Channel | None, version: str, digest: str) -> Channel:
    target = ChannelTarget(version, digest, _now())
    if current is None:
        return Channel(target)
    withdrawn = tuple(other for other in current.withdrawn if other != digest)
    return Channel(target, (*current.before, current.target)[-REMEMBERED:], withdrawn)


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _parsed(name: str, channel: str, data: bytes) -> Channel:
    what = f"the channel {name}@{channel}"
    try:
        found = build(Channel, strict_json(data, what, MAX_CHANNEL_BYTES), what, IntegrityError)
        for target in (found.target, *found.before):
            check_tag(target.version)
            check_digest(target.digest)
        return found
    except (FormatError, UsageError) as error:
        fix = "remove it from the hub and move it again: sparsehub tag"
        raise IntegrityError(f"{what} is damaged", found=str(error), fix=fix) from error
