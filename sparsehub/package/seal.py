"""Making a package of a folder whose delta and head are already written, however large they are."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from sparsehub.delta import DELTA_FILE
from sparsehub.files import new_folder, sha256_file
from sparsehub.package.card import write_card
from sparsehub.package.io import check_files, read_manifest, read_package
from sparsehub.package.manifest import CARD_FILE, HEAD_FILE, MANIFEST_FILE, FileRecord, Manifest, check_manifest
from sparsehub.tensorfile import read_header

WHOLE_BYTES = 16 << 20  # deltas up to this size are read back whole


def seal_package(folder: Path, draft: Manifest) -> Manifest:
    """Write card and manifest beside what is in `folder`, and prove the package; raises `FormatError`.

    A delta over `WHOLE_BYTES` is proved by its header and its digests: reading it back would take the memory that was
    saved by streaming it. Every reader proves it again.
    """
    (folder / CARD_FILE).write_text(write_card(draft), encoding="utf-8")
    records = {path.name: FileRecord(path.stat().st_size, sha256_file(path)) for path in folder.iterdir()}
    manifest = dataclasses.replace(draft, files=records)
    check_manifest(manifest)
    (folder / MANIFEST_FILE).write_bytes(manifest.to_bytes())
    if records[DELTA_FILE].size <= WHOLE_BYTES:
        read_package(folder)
    else:
        check_files(folder, manifest)
        read_header(folder / DELTA_FILE)
    return manifest


def sealed_again(package: Path, out: Path, metrics: dict[str, dict[str, float]], training: dict[str, Any]) -> Manifest:
    """Move a package to the new folder `out`, with metrics and more to tell: another manifest, so another digest."""
    manifest = read_manifest(package)
    draft = dataclasses.replace(manifest, metrics=metrics, training={**manifest.training, **training})
    with new_folder(out) as folder:
        for name in (DELTA_FILE, HEAD_FILE):
            if name in manifest.files:
                (package / name).rename(folder / name)
        return seal_package(folder, draft)
