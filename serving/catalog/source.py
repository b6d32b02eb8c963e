"""Where a catalogue's packages come from: the hub beside it, and whose packages are allowed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from serving.catalog.catalog import CatalogTarget
from serving.catalog.storage import target_of
from sparsehub.hub import PackageHub
from sparsehub.hub.listing import Entries
from sparsehub.hub.package_loader import load_package
from sparsehub.hub.user_settings import read_policy
from sparsehub.package import Package
from sparsehub.task_ref import TaskRef


@dataclass(frozen=True)
class Source:
    """What a reconciler loads versions from. policy: whose packages may be used, read again for each; None for all."""

    hub: PackageHub
    policy: Path | None

    def load(self, reference: TaskRef) -> Package:
        """Read and prove a package by its digest; raises what that raises."""
        return load_package(reference, self.hub, policy=read_policy(self.policy))

    def resolve(self, reference: str) -> tuple[str, CatalogTarget]:
        """A reference's name and exact version, as they are now."""
        return target_of(reference, self.hub)

    def versions(self, task: str) -> Entries:
        """What is published of a task, from the lowest version to the highest; raises `NotFoundError`."""
        return self.hub.list(task)
