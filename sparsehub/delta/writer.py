"""Write delta.safetensors piece by piece, for `extract` of large checkpoints in which almost every weight changed."""

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
from sparsehub.deltafile import BLOCK, STORED_DTYPES
from sparsehub.errors import DeltaError
from sparsehub.files import CHUNK
from sparsehub.tensorfile import require_finite

_ALIGNMENT = 8


class DeltaWriter:
    """Writes a delta without holding it in memory: parameters are added one by one, in order of their names.

    value_dtype: float32, float16 or bfloat16. Values and indices wait in two temporary files beside `path` until
    `finish`; only the blocks' counts stay in memory, 4 bytes for 65,536 entries.
    """

    def __init__(self, path: Path, value_dtype: str):
        self._path, self._stored, self._dtype = path, STORED_DTYPES[value_dtype], value_dtypes[value_dtype]
        self._counts: dict[str, Tensor] = {}
        self.nnz: dict[str, int] = {}  # changed entries, by parameter

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
        if self.nnz and name <= max(self.nnz):
            raise DeltaError(f"{name!r} comes after {max(self.nnz)!r}", expected="parameters by name, each once")
        counts = torch.zeros(-(-numel // BLOCK), dtype=torch.int64)
        last = -1
        for positions, values in pieces:
            if not len(positions):
                continue
            if int(positions[0]) <= last or int(positions[-1]) >= numel or bool((positions.diff() <= 0).any()):
                raise DeltaError(f"{name!r}: indices are not strictly increasing or out of range")
            last = int(positions[-1])
            counts += torch.bincount(positions // BLOCK, minlength=len(counts))
            self._write(name, positions, values)
        total = int(counts.sum())
        if total:
            self._counts[name], self.nnz[name] = counts.to(torch.int32), total
        return total

    def _write(self, name: str, positions: Tensor, values: Tensor) -> None:
        stored = values.to(self._dtype)
        require_finite(name, stored, DeltaError)
        self._files["indices"].write(_bytes((positions % BLOCK).to(torch.uint16)))
        self._files["values"].write(_bytes(stored))

    def finish(self) -> None:
        """Put the file together; raises `DeltaError` where nothing changes."""
        if not self.nnz:
            raise DeltaError("the delta changes nothing", expected="at least one parameter with one entry")
        with self._path.open("wb") as out:
            out.write(self._header())
            for counts in self._counts.values():
                out.write(_bytes(counts))
            for part in self._files.values():
                part.seek(0)
                shutil.copyfileobj(part, out, CHUNK)

    def _header(self) -> bytes:
        """Counts first, then values, then indices: each is aligned at least as its own dtype needs."""
        n, table, start = sum(self.nnz.values()), {}, 0
        for name, dtype, length, size in (
            ("counts", "I32", sum(map(len, self._counts.values())), 4),
            ("values", self._stored, n, self._dtype.itemsize),
            ("indices", "U16", n, 2),
        ):
            stop = start + size * length
            table[name] = {"dtype": dtype, "shape": [length], "data_offsets": [start, stop]}
            start = stop
        text = json.dumps(table, separators=(",", ":")).encode()
        text += b" " * (-len(text) % _ALIGNMENT)
        return struct.pack("<Q", len(text)) + text


def _bytes(tensor: Tensor) -> bytes:
    return bytes(tensor.contiguous().view(torch.uint8).numpy().data)
