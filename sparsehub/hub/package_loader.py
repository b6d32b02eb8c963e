"""Packages for engines and the command line, by folder or by reference: through the cache, validated at every use."""

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
    """A package that `pull` has fetched and validated."""

    resolved: Resolved
    manifest: Manifest
    folder: Path  # `out`, or the copy in the cache
    publisher: str | None  # who signed it, by the policy; None for an unsigned one


def load_package(
    reference: str | TaskRef,
    hub: PackageHub | None,
    *,
    policy: Policy | None = None,
    lock: Lock | None = None,
    progress: Progress | None = None,
) -> Package:
    """Read and validate a package, and check it against a policy: the user's own where none is given.

    reference: a package folder as text, or a task in `hub`. Raises `UsageError`, `NotFoundError`, `FormatError` and
    `TrustError` before anything of the package is used.
    """
    from sparsehub.package import MANIFEST_FILE, read_package  # lazy: torch
    from sparsehub.package.validation import package_beside

    if isinstance(reference, str) and (Path(reference) / MANIFEST_FILE).is_file():
        package = read_package(Path(reference))
        (policy or read_policy()).check(Path(reference), package.manifest)
        return package
    if hub is None:
        near = package_beside(Path(str(reference)))
        fix = f"give --hub, or the package folder {near}" if near else "give --hub"
        raise UsageError(f"{str(reference)!r} is no package folder, and no hub is given", fix=fix)

    def read(folder: Path, resolved: Resolved) -> Package:
        package = read_package(folder)
        _check_same(package.manifest, resolved)
        return package

    return use_package(reference, hub, read, policy=policy, lock=lock, progress=progress)


def pull(
    reference: str | TaskRef,
    hub: PackageHub,
    *,
    out: Path | None = None,
    policy: Policy | None = None,
    lock: Lock | None = None,
    progress: Progress | None = None,
) -> PulledPackage:
    """Fetch a package into the cache, and copy it to the new folder `out` where one is given.

    Every byte is hashed once, as it comes; a package that is in the cache is hashed again only where one of its files
    was touched since. Raises what `load_package` raises.
    """
    policy = policy or read_policy()

    def take(folder: Path, resolved: Resolved) -> PulledPackage:
        # Only a package that was validated whole is ever stored under its digest in the cache.
        manifest = validate_unchanged(folder)
        _check_same(manifest, resolved)
        publisher = policy.check(folder, manifest)
        if out is not None:
            _copy(folder, manifest, out)
        return PulledPackage(resolved, manifest, out or folder, publisher)

    return _use_cached(_resolve(reference, hub, lock), hub, take, progress)


def use_package(
    reference: str | TaskRef,
    hub: PackageHub,
    use: Callable[[Path, Resolved], T],
    *,
    policy: Policy | None = None,
    lock: Lock | None = None,
    progress: Progress | None = None,
) -> T:
    """What `use` returns for the cached folder of a package, which the policy allows; it is not evicted meanwhile.

    `use` validates what it reads, and raises `FormatError` where that fails: it is then called again on a fresh copy.
    """
    from sparsehub.package import read_manifest

    policy = policy or read_policy()

    def allowed(folder: Path, resolved: Resolved) -> T:
        manifest = read_manifest(folder)
        _check_same(manifest, resolved)
        policy.check(folder, manifest)
        return use(folder, resolved)

    return _use_cached(_resolve(reference, hub, lock), hub, allowed, progress)


def _resolve(reference: str | TaskRef, hub: PackageHub, lock: Lock | None) -> Resolved:
    """What the reference means. A pinned digest that is in the cache is taken without asking the hub."""
    wanted = reference_of(reference)
    if lock is not None:
        return lock.resolve(wanted, hub)
    if wanted.digest is not None and PackageCache().holds(wanted.digest):
        return Resolved(wanted.name, None, wanted.digest)
    return hub.resolve(wanted)


def _use_cached(
    resolved: Resolved,
    hub: PackageHub,
    use: Callable[[Path, Resolved], T],
    progress: Progress | None,
) -> T:
    """What `use` returns for a package's folder in the cache.

    A cached copy that turns out to be damaged is fetched once more, and an unsigned one gets the signature that the hub
    may have by now. A damaged copy of a signed package shows as a signature that does not verify.
    """
    cache = PackageCache(limit=read_settings().cache_bytes)
    here = cache.holds(resolved.digest)

    def once() -> T:
        with cache.package(resolved, hub, progress) as folder:
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
    """Whether a copy whose signature does not verify is a damaged one; it is set aside then."""
    from sparsehub.package.validation import read_manifest, validate_digests

    try:
        with cache.package(resolved, hub) as folder:
            validate_digests(folder, read_manifest(folder))
    except FormatError:
        cache.set_aside(resolved.digest)
        return True
    return False


def _add_signature(cache: PackageCache, resolved: Resolved, hub: PackageHub) -> bool:
    """Fetch a signature that was made after the package was fetched; whether there was one."""
    from sparsehub.package.manifest import SIGNATURE_FILE

    with cache.package(resolved, hub) as folder:
        if (folder / SIGNATURE_FILE).exists():
            return False
        with suppress(HubError):
            signature = hub.backend.read_signature(resolved.name, resolved.digest)
            if signature is not None:
                cache.add_signature(resolved.digest, signature)
                return True
    return False


def _check_same(manifest: Manifest, resolved: Resolved) -> None:
    """Raises `IntegrityError` or `NotFoundError` unless a cached package is the one that was asked for."""
    if manifest.digest != resolved.digest:
        raise IntegrityError("the cached package is another one", found=manifest.digest, expected=resolved.digest)
    if manifest.name != resolved.name:
        problem = f"{resolved.digest} is a package of another task"
        raise NotFoundError(problem, found=manifest.name, expected=resolved.name)


def _copy(folder: Path, manifest: Manifest, out: Path) -> None:
    """Write the package to the new folder `out`; what is written is what was read and hashed."""
    from sparsehub.package.manifest import MANIFEST_FILE, SIGNATURE_FILE
    from sparsehub.package.signing import read_signature
    from sparsehub.package.validation import read_file

    with new_folder(out) as temporary:
        for name, record in manifest.files.items():
            (temporary / name).write_bytes(read_file(folder, name, record))
        (temporary / MANIFEST_FILE).write_bytes(manifest.to_bytes())
        if (signature := read_signature(folder)) is not None:
            (temporary / SIGNATURE_FILE).write_bytes(signature)
