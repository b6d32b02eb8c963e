"""Packages written for tests: a manifest, a delta and a head as they are given, with any card and pictures.

The product's own writer, which makes card and pictures itself, is tested in tests/package/test_writer.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from sparsehub.delta import Delta, delta_bytes
from sparsehub.deltafile import DELTA_FILE
from sparsehub.files import new_folder, sha256_bytes
from sparsehub.package import Manifest, validate_package
from sparsehub.package.manifest import CARD_FILE, HEAD_FILE, MANIFEST_FILE, FileRecord
from sparsehub.tensorfile import tensor_bytes


def write_bare_package(
    folder: Path, draft: Manifest, delta: Delta, head: Mapping[str, Tensor], card: str, pictures: Mapping[str, bytes]
) -> Manifest:
    """Write a package and validate it; returns the manifest with its file records. pictures: by file name."""
    tensors = {DELTA_FILE: delta_bytes(delta), **({HEAD_FILE: tensor_bytes(head)} if head else {})}
    contents = {**tensors, CARD_FILE: card.encode(), **pictures}
    records = {name: FileRecord(len(data), sha256_bytes(data)) for name, data in contents.items()}
    manifest = dataclasses.replace(draft, files=records)
    with new_folder(folder) as temporary:
        for name, data in {**contents, MANIFEST_FILE: manifest.to_bytes()}.items():
            (temporary / name).write_bytes(data)
        validate_package(temporary)
    return manifest
