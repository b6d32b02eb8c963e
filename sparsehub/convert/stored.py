"""The tensors of a checkpoint where they lie, whatever the number of its files; read piece by piece."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from sparsehub.backbone.checkpoint import weight_files
from sparsehub.tensorfile import Entry, read_header, read_pieces, read_tensor

PIECE = 1 << 18  # entries that are held at once; a multiple of the format's blocks


@dataclass(frozen=True)
class Stored:
    """One tensor of a file whose header was proved."""

    path: Path
    entry: Entry

    @property
    def shape(self) -> tuple[int, ...]:
        return self.entry.shape

    def pieces(self) -> Iterator[Tensor]:
        """Flat, `PIECE` entries at a time."""
        return read_pieces(self.path, self.entry, PIECE)

    def read(self) -> Tensor:
        return read_tensor(self.path, self.entry)


def stored_tensors(folder: Path) -> dict[str, Stored]:
    """Every tensor of a checkpoint folder, by name; raises `BackboneError` and `FormatError`."""
    return {name: Stored(file, e) for file in weight_files(folder) for name, e in read_header(file).entries.items()}
