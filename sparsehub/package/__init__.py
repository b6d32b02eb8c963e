"""A package folder: manifest, delta, head, card. Nothing here knows where packages live."""

from sparsehub.package.io import Package, read_manifest, read_package, rename_package, write_package
from sparsehub.package.manifest import MANIFEST_FILE, Manifest, TaskSpec

__all__ = [
    "MANIFEST_FILE",
    "Manifest",
    "Package",
    "TaskSpec",
    "read_manifest",
    "read_package",
    "rename_package",
    "write_package",
]
