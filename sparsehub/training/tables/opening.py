"""Data files as bytes: compressed ones are decompressed, whatever they are called."""

from __future__ import annotations

import bz2
import gzip
import lzma
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from sparsehub.errors import DataError
from sparsehub.extras import require

COMPRESSED = (".gz", ".zst", ".bz2", ".xz")  # endings of names, after the format's
CHUNK = 1 << 20  # bytes


def _zstandard(path: Path) -> Any:
    arrow = require("pyarrow", "train")
    return arrow.CompressedInputStream(arrow.OSFile(str(path)), "zstd")


_OPENERS: dict[bytes, Callable[[Path], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"\x28\xb5\x2f\xfd": _zstandard,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
}
_OTHERS = {
    b"PK\x03\x04": ("a zip archive, as workbooks of Excel are", "unpack it, or save the sheet as CSV UTF-8"),
    b"\xd0\xcf\x11\xe0": ("a workbook of Excel", "save the sheet as CSV UTF-8"),
    b"PAR1": ("a Parquet file", "call it .parquet"),
    b"ARROW1": ("an Arrow file", "write it as .parquet"),
    b"version https://git-lfs": ("a pointer of Git LFS, not the file", "run git lfs pull"),
}


def open_bytes(path: Path) -> BinaryIO:
    """The file's contents, decompressed; raises `DataError` for a file that is no text whatever its name says."""
    with path.open("rb") as file:
        head = file.read(32)
    for magic, (what, fix) in _OTHERS.items():
        if head.startswith(magic):
            raise DataError(f"{path} cannot be read as a data set", found=what, fix=fix)
    opener = next((opener for magic, opener in _OPENERS.items() if head.startswith(magic)), None)
    return path.open("rb") if opener is None else opener(path)


def chunks(path: Path) -> Iterator[bytes]:
    """The file's contents, decompressed, a mebibyte at a time."""
    with open_bytes(path) as file:
        while chunk := file.read(CHUNK):
            yield chunk
