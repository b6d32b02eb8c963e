"""A compiled program as files: a shared library and its description, written once and proved when read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import sparsehub.kernels
from sparsehub.errors import EngineError
from sparsehub.files import canonical_json, sha256_file, strict_json, write_file

LIBRARY, DESCRIPTION = "program.so", "program.json"
# What a program of mixed passes takes after the base model's own inputs: the address tables, and the blocks of tensors
# with a row for each token and of those with a row for each sequence.
TABLES, TOKEN_BLOCKS, ROW_BLOCKS = "tables", "token_blocks", "row_blocks"
ARGUMENTS = (TABLES, TOKEN_BLOCKS, ROW_BLOCKS)
# What one of a layer takes after what the layer itself is called with: the rows that its hidden states are made of, and
# for each row which of them; the layer's own rows of the address tables, and the blocks.
SOURCE, SOURCE_ROWS = "source", "source_rows"
LAYER_ARGUMENTS = (SOURCE, SOURCE_ROWS, TABLES, TOKEN_BLOCKS)
STATES = "states"  # what one of a layer returns
PLAIN, MIXED, LAYER = "plain", "mixed", "layer"  # kinds of programs


@dataclass(frozen=True)
class ProgramFiles:
    """A program that lies on disk; `Program` loads it."""

    library: Path
    # names of its arguments: each [rows, tokens] int64, or one of `ARGUMENTS`; a layer's are those of a `LayerCall` and
    # `LAYER_ARGUMENTS`
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]  # names of the tensors that it returns


def program_ops() -> Path:
    """The C++ of what programs call of ours."""
    return Path(sparsehub.kernels.__file__).with_name("program_ops.hpp")


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
