"""From the location of a catalogue to its document: a file, or an object in a hub (`s3://bucket/models#production`)."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from serving.catalog.catalog import Catalog, CatalogTarget, parse_catalog
from sparsehub.errors import UsageError
from sparsehub.files import cache_root, sha256_bytes
from sparsehub.hub import PackageHub, open_hub
from sparsehub.hub.blob_store import ObjectDocument
from sparsehub.hub.blob_store_backend import BlobStoreBackend
from sparsehub.hub.documents import Document, FileDocument, change
from sparsehub.hub.locations import open_backend

FOLDER = "catalogs"
FORMS = "a file, or HUB#NAME for an object in a hub"
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


def open_catalog(location: str) -> Document:
    """The document at a location; nothing is asked of it yet. Raises `UsageError`."""
    hub, mark, name = location.rpartition("#")
    if not mark:
        return FileDocument(Path(location).absolute())
    if not hub or not _NAME.fullmatch(name):
        raise UsageError("not the location of a catalogue", found=location[:200], expected=FORMS)
    home = open_backend(hub)
    if not isinstance(home, BlobStoreBackend):
        raise UsageError("a catalogue lives in a folder or a bucket", found=location[:200], expected=FORMS)
    return ObjectDocument(home.objects, f"{FOLDER}/{name}")


def last_good_file(document: Document) -> Path:
    """Where this machine keeps the last good state of a catalogue."""
    return cache_root() / "catalogs" / f"{sha256_bytes(document.where.encode())[7:39]}.json"


def hub_inside(location: str) -> str:
    """The hub that a catalogue lies in; empty where it is a file."""
    return location.rpartition("#")[0]


def hub_beside(location: str, hub: str | None, flag: str = "--hub") -> PackageHub:
    """The hub that holds the packages of a catalogue: `hub`, or the one that the catalogue itself lives in.

    flag: what errors say to give. Raises `UsageError` where there is neither.
    """
    inside = hub_inside(location)
    if not hub and not inside:
        raise UsageError("a catalogue in a file does not say where its packages are", fix=f"give {flag}")
    return open_hub(hub or inside)


def target_of(reference: str, hub: PackageHub) -> tuple[str, CatalogTarget]:
    """The name and the exact version that a reference means in a hub now."""
    resolved = hub.resolve(reference)
    return resolved.name, CatalogTarget(resolved.version or resolved.digest, resolved.digest)


def change_catalog(document: Document, edit: Callable[[Catalog], Catalog]) -> Catalog:
    """Change a catalogue by compare-and-swap; raises what `edit` raises, and `ConflictError`."""

    def edited(data: bytes | None) -> bytes:
        return edit(Catalog() if data is None else parse_catalog(data)).to_bytes()

    written = change(document, edited)
    assert written is not None, "no edit leaves a catalogue alone"
    return parse_catalog(written)
