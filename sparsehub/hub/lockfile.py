"""sparsehub.lock: the digests that a project pins its task references to, checked at every use."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sparsehub.errors import FormatError, IntegrityError, NotFoundError, UnreachableError, UsageError
from sparsehub.files import strict_json, write_file
from sparsehub.hub.package_hub import PackageHub
from sparsehub.hub.resolver import Resolved
from sparsehub.schema import build
from sparsehub.task_ref import TaskRef, check_digest, check_tag, check_task_name, reference_of

LOCK_FILE = "sparsehub.lock"
LOCK_VERSION = 1


@dataclass(frozen=True)
class Pin:
    """A task pinned to one version and its digest."""

    name: str
    version: str
    digest: str  # of the package


@dataclass(frozen=True)
class Lock:
    """The contents of a lock file."""

    hub: str  # where the references were resolved
    tasks: tuple[Pin, ...] = ()  # at most one a task, sorted by name
    lock_version: int = LOCK_VERSION

    def pin(self, name: str) -> Pin:
        """The pin of a task; raises `NotFoundError`."""
        for pin in self.tasks:
            if pin.name == name:
                return pin
        fix = f"sparsehub lock {name} --hub {self.hub}"
        raise NotFoundError(f"{name} is not in the lock file", found=", ".join(p.name for p in self.tasks), fix=fix)

    def resolve(self, reference: str | TaskRef, hub: PackageHub) -> Resolved:
        """What this lock pins a reference to. A hub that can be reached must agree; without one, the digest decides.

        Raises `UsageError` where the reference asks for something else than the lock pins, and `IntegrityError`, with
        both digests, where the hub has other bytes under that version by now.
        """
        wanted = reference_of(reference)
        pin = self.pin(wanted.name)
        if wanted.version not in (None, pin.version) or wanted.digest not in (None, pin.digest):
            fix = f"sparsehub lock {reference} --hub {self.hub}"
            raise UsageError(f"{reference} is locked otherwise", found=f"{pin.version} {pin.digest}", fix=fix)
        with suppress(UnreachableError):
            check_pin(pin, hub)
        return Resolved(pin.name, pin.version, pin.digest)


def check_pin(pin: Pin, hub: PackageHub) -> None:
    """Check a pin against a hub; raises `IntegrityError` for other bytes under that version, `NotFoundError`."""
    found = hub.resolve_version(pin.name, pin.version).digest
    if found != pin.digest:
        raise IntegrityError(
            f"{pin.name}@{pin.version} is not what it was when it was locked",
            found=found,
            expected=pin.digest,
            fix="find out who changed a published version; if it is meant, remove it from the lock file and lock again",
        )


def lock_references(
    references: Sequence[str | TaskRef], hub: PackageHub, before: Lock | None, location: str | None = None
) -> Lock:
    """`before` with these references added or updated. A pinned version whose bytes have changed is refused.

    location: the hub as the file names it, which may be a path relative to the project.
    """
    pins = {pin.name: pin for pin in (before.tasks if before else ())}
    for reference in references:
        resolved = hub.resolve(reference)
        version = resolved.version or hub.manifest(resolved.name, resolved.digest).version
        there = pins.get(resolved.name)
        if there is not None and there.version == version:
            check_pin(there, hub)
        pins[resolved.name] = Pin(resolved.name, version, resolved.digest)
    return Lock(location or hub.where, tuple(pins[name] for name in sorted(pins)))


def write_lock(path: Path, lock: Lock) -> None:
    """Write a lock file, atomically, one value a line so that it can be compared and kept in a repository."""
    write_file(path, (json.dumps(dataclasses.asdict(lock), indent=2, ensure_ascii=False) + "\n").encode())


def read_lock(path: Path) -> Lock:
    """Read and validate a lock file; raises `UsageError` where it is absent or malformed."""
    if not path.is_file():
        fix = "write one: sparsehub lock NAME ... --hub HUB"
        raise UsageError(f"there is no lock file {path}", fix=fix)
    try:
        table = strict_json(path.read_bytes(), str(path))
        lock = build(Lock, table, str(path), UsageError)
        for pin in lock.tasks:
            check_task_name(pin.name)
            check_tag(pin.version)
            check_digest(pin.digest)
    except FormatError as error:
        raise UsageError(f"{path} is malformed", found=str(error)) from error
    names = [pin.name for pin in lock.tasks]
    if lock.lock_version != LOCK_VERSION or len(set(names)) != len(names):
        found = f"version {lock.lock_version}, tasks {', '.join(names)}"
        raise UsageError(f"{path} is malformed", found=found[:300], expected=f"version {LOCK_VERSION}, a task once")
    return lock
