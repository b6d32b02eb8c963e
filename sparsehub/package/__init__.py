"""Package folders (manifest, delta, head, card): read, validated, written, rendered. Where they live: `hub`."""

from typing import TYPE_CHECKING

from sparsehub.lazy import lazy_names

if TYPE_CHECKING:
    from sparsehub.package.manifest import MANIFEST_FILE, Manifest
    from sparsehub.package.reader import Package, read_package
    from sparsehub.package.task_spec import TaskSpec
    from sparsehub.package.validation import read_manifest, rename_package, validate_package
    from sparsehub.package.writer import finalize_package, restate_package, rewrite_package, write_package

__all__ = [
    "MANIFEST_FILE",
    "Manifest",
    "Package",
    "TaskSpec",
    "validate_package",
    "read_manifest",
    "read_package",
    "rename_package",
    "finalize_package",
    "restate_package",
    "rewrite_package",
    "write_package",
]

_HOMES = {
    **dict.fromkeys(["Package", "read_package"], "reader"),  # these import torch
    **dict.fromkeys(["MANIFEST_FILE", "Manifest"], "manifest"),
    "TaskSpec": "task_spec",
    **dict.fromkeys(["validate_package", "read_manifest", "rename_package"], "validation"),
    **dict.fromkeys(["finalize_package", "restate_package", "rewrite_package", "write_package"], "writer"),
}
__getattr__ = lazy_names(__name__, _HOMES)
