"""A package folder: manifest, delta, head, card. Nothing here knows where packages live."""

from typing import TYPE_CHECKING

from sparsehub.lazy import lazy_names

if TYPE_CHECKING:
    from sparsehub.package.io import Package, read_package, write_package
    from sparsehub.package.manifest import MANIFEST_FILE, Manifest, TaskSpec
    from sparsehub.package.proof import prove_package, read_manifest, rename_package
    from sparsehub.package.seal import seal_package, sealed_again, write_carded_package

__all__ = [
    "MANIFEST_FILE",
    "Manifest",
    "Package",
    "TaskSpec",
    "prove_package",
    "read_manifest",
    "read_package",
    "rename_package",
    "seal_package",
    "sealed_again",
    "write_carded_package",
    "write_package",
]

_HOMES = {
    **dict.fromkeys(["Package", "read_package", "write_package"], "io"),  # these import torch
    **dict.fromkeys(["MANIFEST_FILE", "Manifest", "TaskSpec"], "manifest"),
    **dict.fromkeys(["prove_package", "read_manifest", "rename_package"], "proof"),
    **dict.fromkeys(["seal_package", "sealed_again", "write_carded_package"], "seal"),
}
__getattr__ = lazy_names(__name__, _HOMES)
