"""GGUF files, llama.cpp's format: finds the one of a folder, and reads its table of tensors with every bound checked.

The weights themselves are dequantised by transformers. Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import hashlib
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from sparsehub.errors import BackboneError, FormatError
from sparsehub.extras import require
from sparsehub.tensorfile import MAX_DIMENSIONS, MAX_HEADER_BYTES, MAX_NAME, Header, TensorEntry

GGUF_SUFFIX = ".gguf"
SAYS = "gguf"  # the key, in a header's metadata, of the digest of all that the file says beside its tensors
_MAGIC, _VERSIONS = b"GGUF", (2, 3)
_WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # bytes of a value, by its type
_TEXT, _ARRAY, _UINT32 = 8, 9, 4
_ALIGNMENT_KEY, _ALIGNMENT = b"general.alignment", 32
_MAX_VALUES = 1 << 16  # metadata keys, and tensors
_MAX_ENTRIES = 1 << 48  # of a tensor


def find_gguf(folder: Path) -> Path | None:
    """The GGUF file that is a folder's checkpoint; None where it has none, or safetensors beside it.

    Raises `BackboneError` where there are several: each is a model of its own.
    """
    found = sorted(folder.glob(f"*{GGUF_SUFFIX}"))
    if not found or any(folder.glob("*.safetensors")):
        return None
    if len(found) > 1:
        raise BackboneError(
            f"{folder} holds several GGUF files",
            found=", ".join(path.name for path in found[:3]),
            expected="one, whole",
            fix="put the one that you mean into a folder of its own, beside its tokenizer files",
        )
    return found[0]


def gguf_option(folder: Path) -> dict[str, str]:
    """What transformers must be told to load a folder: the GGUF file's name where it has one, else nothing.

    Raises `MissingExtraError` where the library that reads it is not installed.
    """
    path = find_gguf(folder)
    if path is None:
        return {}
    require("gguf", "quantised")
    return {"gguf_file": path.name}


def read_gguf_header(path: Path) -> Header:
    """Where each tensor of a GGUF file lies, and the digest of all else that it says; raises `FormatError`.

    An entry's dtype is `ggml:` and the number of its type; its bytes run to the next tensor, padding included.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        return _Reader(file, size, path.name).header()


@dataclass
class _Reader:
    """Reads a GGUF file from its start; every read is within the file and within the limit of a header."""

    file: BinaryIO
    size: int
    name: str

    def header(self) -> Header:
        if self._take(4) != _MAGIC:
            raise FormatError(f"{self.name} is no GGUF file", expected=f"{_MAGIC!r} at its start")
        version, tensors, keys = self._numbers("<IQQ")
        if version not in _VERSIONS:
            raise FormatError(f"{self.name} is GGUF of an unknown version", found=version, expected="2 or 3")
        if max(tensors, keys) > _MAX_VALUES:
            raise FormatError(f"{self.name} holds too many values", found=max(tensors, keys), expected=_MAX_VALUES)
        alignment = self._metadata(keys)
        end = self.file.tell()
        table = [self._entry() for _ in range(tensors)]
        start = -(-self.file.tell() // alignment) * alignment
        self.file.seek(0)
        said = hashlib.sha256(self.file.read(end)).hexdigest()
        return Header(self._placed(table, start, alignment), {SAYS: f"sha256:{said}"})

    def _metadata(self, keys: int) -> int:
        """Walk the metadata; returns the alignment of the tensors' data."""
        names: set[bytes] = set()
        alignment = _ALIGNMENT
        for _ in range(keys):
            name = self._text()
            (kind,) = self._numbers("<I")
            if name in names:
                raise FormatError(f"{self.name} says {name[:MAX_NAME]!r} twice")
            names.add(name)
            if name == _ALIGNMENT_KEY and kind == _UINT32:
                (alignment,) = self._numbers("<I")
            else:
                self._skip(kind)
        if alignment == 0 or alignment % 8:
            raise FormatError(f"{self.name} has an impossible alignment", found=alignment, expected="a multiple of 8")
        return int(alignment)

    def _skip(self, kind: int) -> None:
        if kind == _TEXT:
            self._text()
        elif kind == _ARRAY:
            inner, count = self._numbers("<IQ")
            if inner == _TEXT:
                for _ in range(count):
                    self._text()
            else:
                self._take(self._width(inner) * count)
        else:
            self._take(self._width(kind))

    def _width(self, kind: int) -> int:
        if kind not in _WIDTHS:
            raise FormatError(f"{self.name} holds a value of an unknown type", found=kind)
        return _WIDTHS[kind]

    def _entry(self) -> tuple[str, tuple[int, ...], int, int]:
        """Name, shape as torch has it, type and offset of a tensor."""
        name = self._text().decode("utf-8", "replace")
        (dimensions,) = self._numbers("<I")
        if not 0 < len(name) <= MAX_NAME or not name.isprintable() or dimensions > MAX_DIMENSIONS:
            raise FormatError(f"{self.name} holds a malformed tensor", found=f"{name[:MAX_NAME]!r}, {dimensions} axes")
        shape = self._numbers(f"<{dimensions}Q")
        if math.prod(shape) > _MAX_ENTRIES:
            raise FormatError(f"{self.name}: {name!r} has an absurd shape", found=list(shape))
        kind, offset = self._numbers("<IQ")
        return name, tuple(reversed(shape)), kind, offset

    def _placed(
        self, table: list[tuple[str, tuple[int, ...], int, int]], start: int, alignment: int
    ) -> dict[str, TensorEntry]:
        offsets = sorted(offset for _, _, _, offset in table)
        if not table:
            raise FormatError(f"{self.name} holds no tensor")
        if len({name for name, _, _, _ in table}) < len(table) or len(set(offsets)) < len(offsets):
            raise FormatError(f"{self.name} holds a tensor twice")
        if any(offset % alignment for offset in offsets) or start + offsets[-1] >= self.size:
            raise FormatError(f"{self.name} is truncated, or its tensors are not aligned", found=f"{self.size} bytes")
        stops = dict(zip(offsets, [*(start + offset for offset in offsets[1:]), self.size], strict=True))
        return {
            name: TensorEntry(f"ggml:{kind}", shape, start + offset, stops[offset])
            for name, shape, kind, offset in table
        }

    def _text(self) -> bytes:
        (length,) = self._numbers("<Q")
        return self._take(length)

    def _numbers(self, layout: str) -> tuple[int, ...]:
        return struct.unpack(layout, self._take(struct.calcsize(layout)))

    def _take(self, count: int) -> bytes:
        if count > min(self.size, MAX_HEADER_BYTES) - self.file.tell():
            raise FormatError(f"{self.name} is truncated, or its header is too long", found=f"{self.size} bytes")
        return self.file.read(count)
