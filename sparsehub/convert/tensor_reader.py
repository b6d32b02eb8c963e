"""TensorReader: reads one tensor of a checkpoint piece by piece, from whichever of its files holds it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sparsehub.backbone.checkpoint import Checkpoint, weight_files
from sparsehub.errors import BackboneError, FormatError
from sparsehub.tensorfile import TensorEntry, read_header

PIECE = 1 << 18  # entries that are held at once; a multiple of the format's blocks
_FLOATING = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class TensorReader:
    """One tensor of a safetensors file whose header was validated."""

    path: Path
    entry: TensorEntry

    @property
    def shape(self) -> tuple[int, ...]:
        return self.entry.shape

    def pieces(self) -> Iterator[Tensor]:
        """The tensor, flat, on the CPU, `PIECE` entries at a time; raises `FormatError`. No file is memory-mapped."""
        return self._pieces(PIECE)

    def read(self) -> Tensor:
        """The whole tensor, on the CPU; raises `FormatError`."""
        pieces = list(self._pieces(max(1, math.prod(self.shape))))
        return (pieces[0] if pieces else torch.empty(0, dtype=self._dtype())).view(self.shape)

    def _dtype(self) -> torch.dtype:
        if self.entry.dtype not in _FLOATING:
            problem = f"{self.path.name} holds a tensor that is not floating"
            raise FormatError(problem, found=self.entry.dtype, expected=", ".join(_FLOATING))
        return _FLOATING[self.entry.dtype]

    def _pieces(self, size: int) -> Iterator[Tensor]:
        dtype, left = self._dtype(), math.prod(self.shape)
        with self.path.open("rb") as file:
            file.seek(self.entry.start)
            while left > 0:
                data = bytearray(min(size, left) * dtype.itemsize)
                if file.readinto(data) != len(data):
                    raise FormatError(f"{self.path.name} was cut while it was read")
                yield torch.frombuffer(data, dtype=dtype)
                left -= size


def refuse_quantised(checkpoint: Checkpoint) -> None:
    """Raises `BackboneError` for a checkpoint whose stored tensors are not its weights."""
    if checkpoint.quantised is not None:
        raise BackboneError(
            f"{checkpoint.id} is quantised, and its stored tensors cannot be compared entry by entry",
            found=checkpoint.quantised,
            fix="give the checkpoint it was quantised from, in float32, float16 or bfloat16, or train on this one",
        )


def stored_tensors(folder: Path) -> dict[str, TensorReader]:
    """Every tensor of a checkpoint folder, by name; raises `BackboneError` and `FormatError`."""
    return {
        name: TensorReader(file, e) for file in weight_files(folder) for name, e in read_header(file).entries.items()
    }
