"""A package by whatever names it: its folder, or a reference in a hub, through a cache that is proved at every use."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from sparsehub.errors import FormatError, UsageError
from sparsehub.files import cache_root
from sparsehub.hub.protocol import Hub, Resolved

if TYPE_CHECKING:
    from sparsehub.package import Package


def load_package(reference: str, hub: Hub | None) -> Package:
    """Read and prove a package; raises `UsageError`, `NotFoundError` or `FormatError`."""
    from sparsehub.package import MANIFEST_FILE, read_package  # lazy: the package floor imports torch

    if (Path(reference) / MANIFEST_FILE).is_file():
        return read_package(Path(reference))
    if hub is None:
        raise UsageError(f"{reference!r} is no package folder, and no hub is given", fix="give --hub")
    return load_resolved(hub.resolve(reference), hub)


def load_resolved(resolved: Resolved, hub: Hub) -> Package:
    """The package of an exact reference; the hub is asked only where the cache has no sound copy."""
    from sparsehub.package import read_package

    folder = cache_root() / "packages" / resolved.digest.removeprefix("sha256:")
    if folder.is_dir():
        try:
            return read_package(folder)
        except FormatError:
            _set_aside(folder)
    try:
        hub.fetch(resolved, folder)
    except UsageError:
        if not folder.is_dir():
            raise  # otherwise another process was faster, and its copy is as good
    return read_package(folder)


def _set_aside(folder: Path) -> None:
    """Move a damaged copy out of the way; it is kept for whoever wants to know what happened."""
    folder.rename(folder.with_name(f"{folder.name}.damaged-{time.time_ns()}"))
