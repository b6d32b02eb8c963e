"""Packages written for tests: a manifest, a delta and a head as they are given, with any card and pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from sparsehub.delta import Delta
from sparsehub.files import new_folder, sha256_bytes
from sparsehub.package import Manifest, validate_package
from sparsehub.package.manifest import CARD_FILE, MANIFEST_FILE, FileRecord
from sparsehub.package.reader import tensor_files


def write_package(
    folder: Path, draft: Manifest, delta: Delta, head: Mapping[str, Tensor], card: str, pictures: Mapping[str, bytes]
) -> Manifest:
    """Write a package and prove it; returns the manifest with its file records filled in. pictures: by file name."""
    contents = {**tensor_files(delta, head), CARD_FILE: card.encode(), **pictures}
    records = {name: FileRecord(len(data), sha256_bytes(data)) for name, data in contents.items()}
    manifest = dataclasses.replace(draft, files=records)
    with new_folder(folder) as temporary:
        for name, data in {**contents, MANIFEST_FILE: manifest.to_bytes()}.items():
            (temporary / name).write_bytes(data)
        validate_package(temporary)
    return manifest
