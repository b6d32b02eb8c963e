"""Where packages live: `PackageHub` and its five verbs, with a folder, a bucket or the Hugging Face Hub behind it."""

from __future__ import annotations

from pathlib import Path

from sparsehub.hub.listing import HubEntry
from sparsehub.hub.locations import open_backend
from sparsehub.hub.package_hub import PackageHub
from sparsehub.hub.resolver import Resolved
from sparsehub.hub.transfer import Progress
from sparsehub.hub.versions import highest, version_order
from sparsehub.task_ref import TaskRef, parse_reference

__all__ = [
    "HubEntry",
    "PackageHub",
    "Progress",
    "Resolved",
    "TaskRef",
    "highest",
    "memory_hub",
    "open_hub",
    "parse_reference",
    "version_order",
]


def open_hub(location: str | Path, *, private: bool | None = None) -> PackageHub:
    """The hub at a folder, `file://`, `s3://`, `gs://`, `az://` or `hf://name`; raises `UsageError`.

    It need not exist: the first publish makes it, and reading a folder before that raises `NotFoundError`.
    private: whether a task that is new on the Hugging Face Hub is private; None leaves it to the account's settings.
    """
    return PackageHub(open_backend(location, private))


def memory_hub() -> PackageHub:
    """An empty hub in memory, for tests and trials; it goes with the process."""
    from obstore.store import MemoryStore

    from sparsehub.hub.blob_store import BlobStore
    from sparsehub.hub.blob_store_backend import BlobStoreBackend

    store = MemoryStore()
    return PackageHub(BlobStoreBackend(BlobStore(lambda: store, "memory")))
