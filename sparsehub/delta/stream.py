"""Writing delta.safetensors without ever holding the delta: for changes of almost every weight of a large model."""

from __future__ import annotations

import json
import shutil
import struct
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from sparsehub.delta.delta import value_dtypes
from sparsehub.delta.io import BLOCK
from sparsehub.errors import DeltaError
from sparsehub.files import CHUNK
from sparsehub.tensorfile import require_finite

_DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
_ALIGNMENT = 8


class DeltaWriter:
    """Takes parameters one after another, in pieces; keeps what they add up to in two files beside `path`.

    value_dtype: float32, float16 or bfloat16. Only the block boundaries stay in memory: 4 bytes for 65,536 entries.
    """

    def __init__(self, path: Path, value_dtype: str):
        self._path, self._dtype = path, value_dtypes[value_dtype]
        self._boundaries: dict[str, Tensor] = {}

    def __enter__(self) -> DeltaWriter:
        folder = self._path.parent
        self._files: dict[str, IO[bytes]] = {
            kind: tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed, and with that gone, at the end
            for kind in ("values", "indices")
        }
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.close()

    def add(self, name: str, numel: int, pieces: Iterable[tuple[Tensor, Tensor]]) -> int:
        """Write one parameter; returns its changed entries. A parameter without any leaves no trace.

        pieces: flat positions [n] int64, strictly increasing over all pieces, and their values [n].
        """
        counts = torch.zeros(-(-numel // BLOCK), dtype=torch.int64)
        last = -1
        for positions, values in pieces:
            if not len(positions):
                continue
            if int(positions[0]) <= last or int(positions[-1]) >= numel or bool((positions.diff() <= 0).any()):
                raise DeltaError(f"{name!r}: indices are not strictly increasing or out of range")
            last = int(positions[-1])
            stored = values.to(self._dtype)
            require_finite(name, stored, DeltaError)
            counts += torch.bincount(positions // BLOCK, minlength=len(counts))
            self._files["indices"].write(_bytes((positions % BLOCK).to(torch.uint16)))
            self._files["values"].write(_bytes(stored))
        total = int(counts.sum())
        if total:
            self._boundaries[name] = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)]).to(torch.int32)
        return total

    @property
    def nnz(self) -> dict[str, int]:
        """Changed entries, by parameter."""
        return {name: int(blocks[-1]) for name, blocks in self._boundaries.items()}

    def finish(self) -> None:
        """Put the file together; raises `DeltaError` where nothing changes."""
        if not self._boundaries:
            raise DeltaError("the delta changes nothing", expected="at least one parameter with one entry")
        with self._path.open("wb") as out:
            out.write(self._header())
            for blocks in self._boundaries.values():
                out.write(_bytes(blocks))
            for part in self._files.values():
                part.seek(0)
                shutil.copyfileobj(part, out, CHUNK)

    def _header(self) -> bytes:
        """All boundaries first, then all values, then all indices: none is less aligned than the ones behind it."""
        table, start = {}, 0
        kinds = {
            "blocks": ("I32", {name: len(blocks) for name, blocks in self._boundaries.items()}, 4),
            "values": (_DTYPES[self._dtype], self.nnz, self._dtype.itemsize),
            "indices": ("U16", self.nnz, 2),
        }
        for kind, (dtype, lengths, size) in kinds.items():
            for name, length in lengths.items():
                table[f"{name}.{kind}"] = {
                    "dtype": dtype,
                    "shape": [length],
                    "data_offsets": [start, start + size * length],
                }
                start += size * length
        text = json.dumps(table, ensure_ascii=False, separators=(",", ":")).encode()
        text += b" " * (-len(text) % _ALIGNMENT)
        return struct.pack("<Q", len(text)) + text


def _bytes(tensor: Tensor) -> bytes:
    return bytes(tensor.contiguous().view(torch.uint8).numpy().data)
