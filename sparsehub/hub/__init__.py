"""Where packages live: one protocol of five verbs, and the hub in a folder or in memory."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from sparsehub.errors import UsageError
from sparsehub.hub.protocol import Entry, Hub, Progress, Resolved
from sparsehub.hub.reference import Reference, parse_reference
from sparsehub.hub.versions import highest, version_order

__all__ = [
    "Entry",
    "Hub",
    "Progress",
    "Reference",
    "Resolved",
    "highest",
    "memory_hub",
    "open_hub",
    "parse_reference",
    "version_order",
]

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def open_hub(location: str | Path) -> Hub:
    """The hub at a folder path or a `file://` URL; raises `UsageError` for any other kind of place.

    The folder need not exist: the first publish makes it, and reading before that raises `NotFoundError`.
    """
    from sparsehub.hub.objects import FolderObjects  # lazy: sparsehub imports without obstore
    from sparsehub.hub.store import StoreHub

    root = _folder(location)
    if root.exists() and not root.is_dir():
        raise UsageError("a hub is a folder", found=f"{root}, which is a file")
    return StoreHub(FolderObjects(root))


def memory_hub() -> Hub:
    """An empty hub in memory, for tests and trials; it goes with the process."""
    from obstore.store import MemoryStore

    from sparsehub.hub.objects import Objects
    from sparsehub.hub.store import StoreHub

    store = MemoryStore()
    return StoreHub(Objects(lambda: store))


def _folder(location: str | Path) -> Path:
    if isinstance(location, Path):
        return location.absolute()
    if not location.strip():
        raise UsageError("the hub's location is empty", expected="a folder path or a file:// URL")
    if not _SCHEME.match(location):
        return Path(location).expanduser().absolute()
    url = urlsplit(location)
    if url.scheme != "file":
        fix = "give the path of a folder, a mounted one for instance"
        raise UsageError("only folders are supported as hubs in this version", found=location[:200], fix=fix)
    if url.netloc not in ("", "localhost") or not url.path or url.query or url.fragment:
        raise UsageError("not the URL of a folder here", found=location[:200], expected="file:///path/to/folder")
    return Path(unquote(url.path))
