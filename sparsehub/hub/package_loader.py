"""A package by whatever names it: its folder, or a reference in a hub, through a cache that is proved at every use."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from sparsehub.errors import FormatError, HubError, IntegrityError, NotFoundError, TrustError, UsageError
from sparsehub.files import new_folder
from sparsehub.hub.cache import PackageCache
from sparsehub.hub.lockfile import Lock
from sparsehub.hub.package_hub import PackageHub
from sparsehub.hub.resolver import Resolved
from sparsehub.hub.transfer import Progress
from sparsehub.hub.user_settings import read_policy, read_settings
from sparsehub.hub.validation_cache import validate_unchanged
from sparsehub.task_ref import TaskRef, reference_of

if TYPE_CHECKING:
    from sparsehub.package import Manifest, Package
    from sparsehub.package.policy import Policy

T = TypeVar("T")


@dataclass(frozen=True)
class PulledPackage:
    """A package that was fetched and proved. folder: `out`, or the copy in the cache; publisher: who signed it."""

    resolved: Resolved
    manifest: Manifest
    folder: Path
    publisher: str | None


def load_package(
    reference: str | TaskRef, hub: PackageHub | None, *, policy: Policy | None = None, lock: Lock | None = None
) -> Package:
    """Read and prove a package, and hold it against a policy: the user's own where none is given.

    reference: a package folder as text, or a task in `hub`. Raises `UsageError`, `NotFoundError`, `FormatError`, or
    `TrustError`; nothing of the package is used then.
    """
    from sparsehub.package import MANIFEST_FILE, read_package  # lazy: torch

    if isinstance(reference, str) and (Path(reference) / MANIFEST_FILE).is_file():
        package = read_package(Path(reference))
        (policy or read_policy()).check(Path(reference), package.manifest)
        return package
    if hub is None:
        raise UsageError(f"{str(reference)!r} is no package folder, and no hub is given", fix="give --hub")

    def read(folder: Path, resolved: Resolved) -> Package:
        package = read_package(folder)
        _check_same(package.manifest, resolved)
        return package

    return use_package(reference, hub, read, policy=policy, lock=lock)


def pull(
    reference: str | TaskRef,
    hub: PackageHub,
    *,
    out: Path | None = None,
    policy: Policy | None = None,
    lock: Lock | None = None,
    progress: Progress | None = None,
) -> PulledPackage:
    """Bring a package to this machine: into the cache, and into the new folder `out` where one is given.

    Every byte that comes is proved, and what was here already wherever it was touched since. Raises what
    `load_package` raises.
    """
    policy = policy or read_policy()

    def take(folder: Path, resolved: Resolved) -> PulledPackage:
        # Nothing that was not proved whole ever got this digest's place in the cache.
        manifest = validate_unchanged(folder)
        _check_same(manifest, resolved)
        publisher = policy.check(folder, manifest)
        if out is not None:
            _copy(folder, manifest, out)
        return PulledPackage(resolved, manifest, out or folder, publisher)

    return _used(_resolve(reference, hub, lock), hub, take, progress)


def use_package(
    reference: str | TaskRef,
    hub: PackageHub,
    use: Callable[[Path, Resolved], T],
    *,
    policy: Policy | None = None,
    lock: Lock | None = None,
    progress: Progress | None = None,
) -> T:
    """What `use` makes of the folder of a package, which the policy allows and which stays there meanwhile.

    `use` proves what it reads, and raises `FormatError` where that fails: then it is called again on a fresh copy.
    """
    from sparsehub.package import read_manifest

    policy = policy or read_policy()

    def allowed(folder: Path, resolved: Resolved) -> T:
        manifest = read_manifest(folder)
        _check_same(manifest, resolved)
        policy.check(folder, manifest)
        return use(folder, resolved)

    return _used(_resolve(reference, hub, lock), hub, allowed, progress)


def _resolve(reference: str | TaskRef, hub: PackageHub, lock: Lock | None) -> Resolved:
    """What the reference means. Bytes that are pinned and here already are taken without asking the hub."""
    wanted = reference_of(reference)
    if lock is not None:
        return lock.resolve(wanted, hub)
    if wanted.digest is not None and PackageCache().holds(wanted.digest):
        return Resolved(wanted.name, None, wanted.digest)
    return hub.resolve(wanted)


def _used(
    resolved: Resolved,
    hub: PackageHub,
    use: Callable[[Path, Resolved], T],
    progress: Progress | None,
) -> T:
    """`use` on a package's folder in the cache.

    A copy that was here and turns out to be damaged is fetched once more, and one that is not signed gets the signature
    that the hub may have by now. A damaged copy of a signed package shows as a signature that does not hold.
    """
    cache = PackageCache(limit=read_settings().cache_bytes)
    here = cache.holds(resolved.digest)

    def once() -> T:
        with cache.package(resolved, lambda: hub, progress) as folder:
            return use(folder, resolved)

    try:
        return once()
    except FormatError:
        if not here:
            raise
        cache.set_aside(resolved.digest)
    except TrustError:
        if not here or not (_was_damaged(cache, resolved, hub) or _add_signature(cache, resolved, hub)):
            raise
    return once()


def _was_damaged(cache: PackageCache, resolved: Resolved, hub: PackageHub) -> bool:
    """Whether a copy whose signature does not hold is a damaged one; it is set aside then."""
    from sparsehub.package.validation import read_manifest, validate_digests

    try:
        with cache.package(resolved, lambda: hub) as folder:
            validate_digests(folder, read_manifest(folder))
    except FormatError:
        cache.set_aside(resolved.digest)
        return True
    return False


def _add_signature(cache: PackageCache, resolved: Resolved, hub: PackageHub) -> bool:
    """Bring a signature that was made after the package was fetched; whether there was one to bring."""
    from sparsehub.package.manifest import SIGNATURE_FILE

    with cache.package(resolved, lambda: hub) as folder:
        if (folder / SIGNATURE_FILE).exists():
            return False
        with suppress(HubError):
            signature = hub.backend.read_signature(resolved.name, resolved.digest)
            if signature is not None:
                cache.add_signature(resolved.digest, signature)
                return True
    return False


def _check_same(manifest: Manifest, resolved: Resolved) -> None:
    """Raises unless a package of the cache is the one that was asked for."""
    if manifest.digest != resolved.digest:
        raise IntegrityError("the cached package is another one", found=manifest.digest, expected=resolved.digest)
    if manifest.name != resolved.name:
        problem = f"{resolved.digest} is a package of another task"
        raise NotFoundError(problem, found=manifest.name, expected=resolved.name)


def _copy(folder: Path, manifest: Manifest, out: Path) -> None:
    """Write the same package elsewhere: the bytes that are written are those that are proved."""
    from sparsehub.package.manifest import MANIFEST_FILE, SIGNATURE_FILE
    from sparsehub.package.signing import read_signature
    from sparsehub.package.validation import read_file

    with new_folder(out) as temporary:
        for name, record in manifest.files.items():
            (temporary / name).write_bytes(read_file(folder, name, record))
        (temporary / MANIFEST_FILE).write_bytes(manifest.to_bytes())
        if (signature := read_signature(folder)) is not None:
            (temporary / SIGNATURE_FILE).write_bytes(signature)
