"""Writes package folders: tensors, pictures, card and manifest, validated before the folder gets its name."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from sparsehub.delta import Delta, delta_bytes
from sparsehub.deltafile import DELTA_FILE, StoredDelta
from sparsehub.errors import ManifestError
from sparsehub.files import new_folder, sha256_file
from sparsehub.package.card import render_card
from sparsehub.package.manifest import CARD_FILE, HEAD_FILE, MANIFEST_FILE, FileRecord, Manifest, check_manifest
from sparsehub.package.plots import draw_pictures
from sparsehub.package.summary import summarize
from sparsehub.package.validation import check_files, read_file, read_manifest, validate_package, validate_stored_delta
from sparsehub.progress import work
from sparsehub.tensorfile import read_header, tensor_bytes

WHOLE_BYTES = 16 << 20  # deltas up to this size are read back whole


def write_package(folder: Path, draft: Manifest, delta: Delta, head: Mapping[str, Tensor]) -> Manifest:
    """Write a package to the new folder `folder`: all of it appears there, or nothing.

    draft: the manifest without its file records. head: tensors by their names in the task's model, empty where the task
    has none. Returns the manifest as written. Raises `FormatError` for what no reader would accept, `UsageError` where
    `folder` exists.
    """
    with new_folder(folder) as temporary:
        write_tensors(temporary, draft, delta, head)
        return finalize_package(temporary, draft)


def write_tensors(folder: Path, draft: Manifest, delta: Delta, head: Mapping[str, Tensor]) -> None:
    """Write the delta's file and the head's, each where there is one; raises `ManifestError` where the draft states
    another kind of values than the delta has, which nobody could see in the file."""
    if draft.delta is None:
        if delta.nnz:
            raise ManifestError("the manifest states no delta", found=f"a delta of {delta.nnz} entries")
        if head:
            (folder / HEAD_FILE).write_bytes(tensor_bytes(head))
        return
    found, stated = (delta.value_kind, delta.value_dtype), (draft.delta.value_kind, draft.delta.value_dtype)
    if found != stated:
        raise ManifestError(
            "the delta's values are not of the kind that the manifest states", found=found, expected=stated
        )
    (folder / DELTA_FILE).write_bytes(delta_bytes(delta))
    if head:
        (folder / HEAD_FILE).write_bytes(tensor_bytes(head))


def finalize_package(folder: Path, draft: Manifest) -> Manifest:
    """Make a package of a folder that holds its tensor files: add pictures, card and manifest, and validate it.

    Raises `FormatError`. A delta over `WHOLE_BYTES` is validated by its header and its digests, and gets no picture of
    its values: reading it back would take the memory that was saved by streaming it. Every reader validates it anew.
    """
    with work(f"finishing {draft.name}@{draft.version}"):
        known = dataclasses.replace(draft, files=file_records(folder.iterdir()))
        manifest = _with_card(folder, known, _small_delta(folder, known))
        write_manifest(folder, manifest)
    return manifest


def rename_into(folder: Path, package: Path, manifest: Manifest) -> Manifest:
    """Lay out a package under another name or version, that of `manifest`, in the empty folder `folder`: links to the
    files of `package`, its card and pictures anew, since they say name and version. Returns the manifest of that.

    The manifest is not written. A package without a card keeps having none.
    """
    kept = {name: record for name, record in manifest.files.items() if not _names_package(name)}
    for name in kept:
        (folder / name).symlink_to((package / name).absolute())
    if CARD_FILE not in manifest.files:
        return dataclasses.replace(manifest, files=kept)
    drawn = len(kept) + 1 < len(manifest.files)
    known = dataclasses.replace(manifest, files=kept)
    return _with_card(folder, known, _small_delta(package, known) if drawn else None, drawn)


def _names_package(file: str) -> bool:
    """Whether a file of a package shows its name and version."""
    return file == CARD_FILE or file.endswith(".png")


def _small_delta(folder: Path, known: Manifest) -> StoredDelta | None:
    stored = known.files.get(DELTA_FILE)
    small = stored is not None and stored.size <= WHOLE_BYTES
    return validate_stored_delta(read_file(folder, DELTA_FILE, known.files[DELTA_FILE]), known) if small else None


def _with_card(folder: Path, known: Manifest, delta: StoredDelta | None, drawn: bool = True) -> Manifest:
    """Write card and pictures beside the files that a manifest records; returns it with their records."""
    summary = summarize(known)
    pictures = draw_pictures(summary, delta) if drawn else {}
    beside = {**pictures, CARD_FILE: render_card(summary, pictures).encode()}
    for name, data in beside.items():
        (folder / name).write_bytes(data)
    return dataclasses.replace(known, files={**known.files, **file_records(folder / name for name in beside)})


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write sparsehub.json beside the files that it records, and validate the package; raises `FormatError`."""
    check_manifest(manifest)
    (folder / MANIFEST_FILE).write_bytes(manifest.to_bytes())
    stored = manifest.files.get(DELTA_FILE)
    if stored is None or stored.size <= WHOLE_BYTES:
        validate_package(folder)  # what cannot be read back is never given a name
    else:
        check_files(folder, manifest)
        read_header(folder / DELTA_FILE)


def file_records(files: Iterable[Path]) -> dict[str, FileRecord]:
    """What a manifest records of files, by name; each is read once, in chunks."""
    return {path.name: FileRecord(path.stat().st_size, sha256_file(path)) for path in files}


def rewrite_package(
    package: Path, out: Path, metrics: dict[str, dict[str, float]], training: dict[str, Any]
) -> Manifest:
    """Move a package to the new folder `out` with other metrics, and `training` added to what it says of its making.

    It is written anew, so it has another digest; `sparsehub extract` does so when it has measured what it made.
    """
    return _written_anew(package, out, metrics, training, os.rename)


def restate_package(package: Path, out: Path, training: dict[str, Any]) -> Manifest:
    """Copy a package to the new folder `out`, with `training` added to what it says of its making; its signature is
    left out, since it is of another digest. `sparsehub evaluate --out` does so."""
    return _written_anew(package, out, read_manifest(package).metrics, training, shutil.copyfile)


def _written_anew(
    package: Path,
    out: Path,
    metrics: dict[str, dict[str, float]],
    training: dict[str, Any],
    put: Callable[[Path, Path], object],
) -> Manifest:
    manifest = read_manifest(package)
    draft = dataclasses.replace(manifest, metrics=metrics, training={**manifest.training, **training})
    with new_folder(out) as folder:
        for name in (DELTA_FILE, HEAD_FILE):
            if name in manifest.files:
                put(package / name, folder / name)
        return finalize_package(folder, draft)
