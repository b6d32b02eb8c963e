"""A compiled program as files: a shared library and its description, written once and proved when read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sparsehub.errors import EngineError
from sparsehub.files import canonical_json, sha256_file, strict_json, write_file

LIBRARY, DESCRIPTION = "program.so", "program.json"


@dataclass(frozen=True)
class ProgramFiles:
    """A program that lies on disk; `Program` loads it."""

    library: Path
    inputs: tuple[str, ...]  # names of its arguments, each [rows, tokens] int64
    outputs: tuple[str, ...]  # names of the tensors that it returns


def write_description(folder: Path, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Say beside a library what it takes and returns, and what its bytes are."""
    table = {"sha256": sha256_file(folder / LIBRARY), "inputs": list(inputs), "outputs": list(outputs)}
    write_file(folder / DESCRIPTION, canonical_json(table))


def read_program(folder: Path) -> ProgramFiles:
    """The program in a folder; raises `EngineError` where its library is not the one that was written."""
    table = strict_json((folder / DESCRIPTION).read_bytes(), DESCRIPTION)
    found = sha256_file(folder / LIBRARY)
    if found != table["sha256"]:
        raise EngineError(f"{folder / LIBRARY} was changed", found=found, expected=table["sha256"], fix="delete it")
    return ProgramFiles(folder / LIBRARY, tuple(table["inputs"]), tuple(table["outputs"]))
