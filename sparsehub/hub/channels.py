"""Channels: named pointers to a version of a task (`latest`, `stable`) that move, with their history."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime

from sparsehub.errors import ConflictError, FormatError, IntegrityError, NotFoundError, UnreachableError, UsageError
from sparsehub.files import canonical_json, strict_json
from sparsehub.hub.backend import HubBackend
from sparsehub.hub.documents import Token, change
from sparsehub.schema import build
from sparsehub.task_ref import check_digest, check_tag, is_channel

MAX_CHANNEL_BYTES = 64 << 10
REMEMBERED = 100  # moves


@dataclass(frozen=True)
class ChannelTarget:
    """The version that a channel points at, or pointed at before."""

    version: str
    digest: str
    moved: str  # when the channel was moved there, in UTC


@dataclass(frozen=True)
class Channel:
    """The stored state of a channel: its target and its history."""

    target: ChannelTarget
    before: tuple[ChannelTarget, ...] = ()  # earlier targets, the latest of them last
    withdrawn: tuple[str, ...] = ()  # digests that were rolled back: publishing them again does not bring them back
    move: str = field(default_factory=lambda: secrets.token_hex(8))
    """Random, so that no two moves write the same bytes and a writer recognises its own."""

    def to_bytes(self) -> bytes:
        return canonical_json(self)


Change = Callable[[Channel | None], Channel | None]
"""From what a channel is to what it shall be; None leaves it alone."""


class ChannelDocument:
    """A channel as a document that `change` can write."""

    def __init__(self, backend: HubBackend, name: str, channel: str):
        self._backend, self._name, self._channel = backend, name, channel
        self.where = f"{name}@{channel}"

    def read(self) -> tuple[bytes, Token] | None:
        return self._backend.read_channel(self._name, self._channel)

    def replace(self, data: bytes, token: Token | None) -> bool:
        """False also where the answer was lost: `change_channel` looks again, and recognises a move of its own."""
        with suppress(UnreachableError):
            return self._backend.write_channel(self._name, self._channel, data, token)
        return False

    def parse(self, data: bytes) -> Channel:
        """The channel in these bytes; raises `IntegrityError` for malformed ones."""
        what = f"the channel {self.where}"
        try:
            found = build(Channel, strict_json(data, what, MAX_CHANNEL_BYTES), what, IntegrityError)
            for target in (found.target, *found.before):
                check_tag(target.version)
                check_digest(target.digest)
            return found
        except (FormatError, UsageError) as error:
            fix = "remove it from the hub and move it again: sparsehub tag"
            raise IntegrityError(f"{what} is damaged", found=str(error), fix=fix) from error


def read_channel(backend: HubBackend, name: str, channel: str) -> Channel | None:
    """A channel, validated; None where there is none; raises `IntegrityError` for a malformed one."""
    document = ChannelDocument(backend, name, channel)
    found = document.read()
    return None if found is None else document.parse(found[0])


def read_channels(backend: HubBackend, name: str) -> dict[str, Channel]:
    """Every channel of a task by its name; those that cannot be read are left out."""
    channels = {}
    for channel in filter(is_channel, backend.channels(name)):
        with suppress(IntegrityError):
            if (found := read_channel(backend, name, channel)) is not None:
                channels[channel] = found
    return channels


def change_channel(backend: HubBackend, name: str, channel: str, move: Change) -> Channel | None:
    """Move a channel by compare-and-swap: `move` is given what it is at that moment, and after each lost race.

    Returns the channel as it is now. Raises what `move` raises, and `ConflictError` where every race was lost.
    """
    document, wanted = ChannelDocument(backend, name, channel), None

    def edit(data: bytes | None) -> bytes | None:
        nonlocal wanted
        current = None if data is None else document.parse(data)
        if wanted is not None and current is not None and current.move == wanted.move:
            return None  # our move went through, and the answer was lost
        wanted = move(current)
        return None if wanted is None else wanted.to_bytes()

    now = change(document, edit)
    return None if now is None else document.parse(now)


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
