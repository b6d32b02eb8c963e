"""safetensors files, with the checks that the library leaves out.

The library accepts duplicate keys, absurd shapes and any tensor name. Everything that came from elsewhere goes
through `read_header` first: sizes, dtypes, shapes and offsets are proved before one byte of data is touched.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from sparsehub.errors import FormatError
from sparsehub.files import strict_json

MAX_HEADER_BYTES = 100_000_000
MAX_DIMENSIONS = 8
MAX_NAME = 512
_BITS = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U64": 64, "U32": 32,
         "U16": 16, "U8": 8, "BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """One tensor of a file. `start` and `stop` are byte positions in the whole file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class Header:
    entries: Mapping[str, Entry]
    metadata: Mapping[str, str]


def read_header(path: Path) -> Header:
    """Parse and prove a file's header; raises `FormatError`. Nothing of the data is read."""
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        if len(prefix) < 8:
            raise FormatError(f"{path.name} is truncated", found=f"{size} bytes", expected="a safetensors header")
        (length,) = struct.unpack("<Q", prefix)
        if length > min(MAX_HEADER_BYTES, size - 8):
            raise FormatError(
                f"{path.name} is truncated or not safetensors",
                found=f"a header of {length} bytes in a file of {size}",
            )
        table = strict_json(file.read(length), f"the header of {path.name}")
    return parse_table(table, data_start=8 + length, size=size, what=path.name)


def parse_table(table: object, *, data_start: int, size: int, what: str) -> Header:
    """Prove a header table: known dtypes, sane shapes, data without holes or overlaps, ending with the file."""
    if not isinstance(table, dict):
        raise FormatError(f"the header of {what} is not an object")
    metadata = table.pop("__metadata__", {})
    if not isinstance(metadata, dict):
        raise FormatError(f"{what}: __metadata__ is not an object")
    entries = {name: _entry(name, value, data_start, what) for name, value in table.items()}
    position = data_start
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)):
        if entry.start != position:
            raise FormatError(f"{what}: the data of {name!r} overlaps another tensor or leaves a hole")
        position = entry.stop
    if position != size:
        raise FormatError(f"{what} is truncated or has trailing bytes", found=f"{size} bytes", expected=position)
    return Header(entries, metadata)


def _entry(name: str, value: object, data_start: int, what: str) -> Entry:
    problem = f"{what}: the header of tensor {name[:MAX_NAME]!r}"
    if not 0 < len(name) <= MAX_NAME or not name.isprintable():
        raise FormatError(f"{problem} has a malformed name", expected=f"1 to {MAX_NAME} printable characters")
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise FormatError(f"{problem} is malformed")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise FormatError(f"{problem} has an unknown dtype", found=dtype, expected=", ".join(_BITS))
    if not _are_counts(shape) or len(shape) > MAX_DIMENSIONS or not _are_counts(offsets) or len(offsets) != 2:
        raise FormatError(f"{problem} has a malformed shape or offsets", found=f"{shape} {offsets}"[:200])
    if math.prod(shape) * _BITS[dtype] // 8 != offsets[1] - offsets[0]:
        raise FormatError(f"{problem}: shape, dtype and size disagree", found=f"{shape} {dtype} {offsets}"[:200])
    if any(extent > 1 << 48 for extent in shape):
        raise FormatError(f"{problem} has an absurd shape", found=shape)
    return Entry(dtype, tuple(shape), data_start + offsets[0], data_start + offsets[1])


def _are_counts(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


_FLOATING = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def read_pieces(path: Path, entry: Entry, size: int) -> Iterator[Tensor]:
    """A floating tensor of a proved file, flat and on the CPU, in pieces of `size` entries; raises `FormatError`.

    Nothing is mapped: what is held at a time is one piece.
    """
    if entry.dtype not in _FLOATING:
        raise FormatError(
            f"{path.name} holds a tensor that is not floating", found=entry.dtype, expected="F32, F16, BF16"
        )
    dtype, left = _FLOATING[entry.dtype], math.prod(entry.shape)
    with path.open("rb") as file:
        file.seek(entry.start)
        while left > 0:
            data = bytearray(min(size, left) * dtype.itemsize)
            if file.readinto(data) != len(data):
                raise FormatError(f"{path.name} was cut while it was read")
            yield torch.frombuffer(data, dtype=dtype)
            left -= size


def read_tensor(path: Path, entry: Entry) -> Tensor:
    """A whole floating tensor of a proved file, on the CPU; raises `FormatError`."""
    pieces = list(read_pieces(path, entry, max(1, math.prod(entry.shape))))
    return (pieces[0] if pieces else torch.empty(0, dtype=_FLOATING[entry.dtype])).view(entry.shape)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a proved file, on the CPU; raises `FormatError`."""
    for name in read_header(path).entries:
        if "/" in name or "\\" in name:
            raise FormatError(f"{path.name} holds a tensor that is named like a path", found=name)
    try:
        return load(path.read_bytes())
    except (SafetensorError, ValueError, RuntimeError, json.JSONDecodeError) as error:
        raise FormatError(f"{path.name} cannot be read as safetensors", found=str(error)) from error


def tensor_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """The file's bytes. The same tensors give the same bytes, whatever the order of the mapping."""
    # Copies, since the library refuses tensors that share memory.
    copies = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }
    return save(dict(sorted(copies.items())))


def require_finite(name: str, tensor: Tensor, error: type[FormatError]) -> None:
    """Raises `error` where a floating tensor holds NaN or infinity."""
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor if tensor.itemsize > 1 else tensor.float()).all()):
        raise error(f"{name!r} holds values that are not finite", fix="train again with a smaller learning rate")
