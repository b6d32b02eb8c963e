"""Making a package of a folder whose delta and head are already written, however large they are."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from sparsehub.delta import Delta
from sparsehub.deltafile import DELTA_FILE
from sparsehub.files import new_folder, sha256_file
from sparsehub.package.card import render_card
from sparsehub.package.manifest import CARD_FILE, HEAD_FILE, MANIFEST_FILE, FileRecord, Manifest, check_manifest
from sparsehub.package.plots import draw_pictures
from sparsehub.package.reader import check_values, tensor_files
from sparsehub.package.summary import summarize
from sparsehub.package.validation import check_files, read_file, read_manifest, validate_package, validate_stored_delta
from sparsehub.tensorfile import read_header

WHOLE_BYTES = 16 << 20  # deltas up to this size are read back whole


def write_carded_package(folder: Path, draft: Manifest, delta: Delta, head: Mapping[str, Tensor]) -> Manifest:
    """Write a package with the card that is made from its manifest, and pictures where matplotlib is installed."""
    check_values(draft, delta)
    with new_folder(folder) as temporary:
        for name, data in tensor_files(delta, head).items():
            (temporary / name).write_bytes(data)
        return finalize_package(temporary, draft)


def finalize_package(folder: Path, draft: Manifest) -> Manifest:
    """Write pictures, card and manifest beside what is in `folder`, and prove the package; raises `FormatError`.

    A delta over `WHOLE_BYTES` is proved by its header and its digests, and gets no picture of its values: reading it
    back would take the memory that was saved by streaming it. Every reader proves it again.
    """
    known = dataclasses.replace(draft, files=_records(folder.iterdir()))
    small = known.files[DELTA_FILE].size <= WHOLE_BYTES
    delta = validate_stored_delta(read_file(folder, DELTA_FILE, known.files[DELTA_FILE]), known) if small else None
    summary = summarize(known)
    pictures = draw_pictures(summary, delta)
    beside = {**pictures, CARD_FILE: render_card(summary, pictures).encode()}
    for name, data in beside.items():
        (folder / name).write_bytes(data)
    manifest = dataclasses.replace(draft, files={**known.files, **_records(folder / name for name in beside)})
    check_manifest(manifest)
    (folder / MANIFEST_FILE).write_bytes(manifest.to_bytes())
    if small:
        validate_package(folder)  # what cannot be read back is never given a name
    else:
        check_files(folder, manifest)
        read_header(folder / DELTA_FILE)
    return manifest


def rewrite_package(
    package: Path, out: Path, metrics: dict[str, dict[str, float]], training: dict[str, Any]
) -> Manifest:
    """Move a package to the new folder `out`, with metrics and more to tell: another manifest, so another digest."""
    manifest = read_manifest(package)
    draft = dataclasses.replace(manifest, metrics=metrics, training={**manifest.training, **training})
    with new_folder(out) as folder:
        for name in (DELTA_FILE, HEAD_FILE):
            if name in manifest.files:
                (package / name).rename(folder / name)
        return finalize_package(folder, draft)


def _records(files: Iterable[Path]) -> dict[str, FileRecord]:
    return {path.name: FileRecord(path.stat().st_size, sha256_file(path)) for path in files}
