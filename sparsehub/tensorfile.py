"""Read and write safetensors files, with the checks that the library leaves out.

The library accepts duplicate keys, absurd shapes and any tensor name. Files from elsewhere go through `read_header` or
`parse_header` first: sizes, dtypes, shapes and offsets are validated before one byte of data is touched. Only the
functions that make tensors import torch.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sparsehub.errors import FormatError
from sparsehub.files import LFS_FIX, LFS_POINTER, MAX_PACKAGE_JSON_BYTES, strict_json

if TYPE_CHECKING:
    from torch import Tensor

MAX_HEADER_BYTES = 100_000_000
MAX_DIMENSIONS = 8
MAX_NAME = 512
_BITS = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U64": 64, "U32": 32,
         "U16": 16, "U8": 8, "BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8}  # fmt: skip
# What numpy calls them; it knows no bfloat16 and no 8-bit floats, so those are read as their bits.
_NUMPY = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
          "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "u1", "F8_E4M3": "u1",
          "F8_E5M2": "u1"}  # fmt: skip
# The bits that are all set in what is not finite: the exponent, or in E4M3, which has no infinities, everything.
_NOT_FINITE = {"F64": 0x7FF0_0000_0000_0000, "F32": 0x7F80_0000, "F16": 0x7C00, "BF16": 0x7F80, "F8_E4M3": 0x7F,
               "F8_E5M2": 0x7C}  # fmt: skip
_CHUNK = 1 << 20  # entries checked at once


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a file."""

    dtype: str  # as safetensors spells it: F32, BF16, ...
    shape: tuple[int, ...]
    start: int  # first byte of its data, counted from the start of the file
    stop: int  # the byte after its last


@dataclass(frozen=True)
class Header:
    """The validated header of a file."""

    entries: Mapping[str, TensorEntry]  # by tensor name
    metadata: Mapping[str, str]


def read_header(path: Path) -> Header:
    """Parse and validate a file's header; raises `FormatError`. No data is read."""
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        if prefix == LFS_POINTER[:8]:
            raise FormatError(f"{path.name} is a Git LFS pointer, not the file itself", fix=LFS_FIX)
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


def parse_header(data: bytes, what: str) -> Header:
    """The validated header of a file in memory; raises `FormatError`. Its JSON is held to a package's limits."""
    if data.startswith(LFS_POINTER):
        raise FormatError(f"{what} is a Git LFS pointer, not the file itself", fix=LFS_FIX)
    length = struct.unpack_from("<Q", data)[0] if len(data) >= 8 else len(data)
    if length > len(data) - 8:
        raise FormatError(f"{what} is truncated or not safetensors", found=f"a header of {length} in {len(data)} bytes")
    table = strict_json(data[8 : 8 + length], f"the header of {what}", MAX_PACKAGE_JSON_BYTES)
    header = parse_table(table, data_start=8 + length, size=len(data), what=what)
    for name in header.entries:
        if "/" in name or "\\" in name:
            raise FormatError(f"{what} holds a tensor that is named like a path", found=name)
    return header


def stored_array(data: bytes, entry: TensorEntry) -> NDArray[Any]:
    """A tensor of a file as an array, without copying; bfloat16 and 8-bit floats as their bits."""
    dtype = np.dtype(_NUMPY[entry.dtype])
    return np.frombuffer(data, dtype, math.prod(entry.shape), entry.start).reshape(entry.shape)


def not_finite_at(array: NDArray[Any], dtype: str) -> int | None:
    """The flat place of the first NaN or infinity of a tensor that is stored as `dtype`; None where all is well."""
    mask = _NOT_FINITE.get(dtype)
    bits = array.reshape(-1).view(f"u{array.itemsize}")
    for start in range(0, len(bits), _CHUNK) if mask is not None else ():
        wrong = (bits[start : start + _CHUNK] & mask) == mask
        if bool(wrong.any()):
            return start + int(np.argmax(wrong))
    return None


def parse_table(table: object, *, data_start: int, size: int, what: str) -> Header:
    """Validate a header table: known dtypes, sane shapes, data without holes or overlaps, ending with the file."""
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


def _entry(name: str, value: object, data_start: int, what: str) -> TensorEntry:
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
    if math.prod(extent for extent in shape if extent) > 1 << 48:  # also beside a zero: strides would overflow
        raise FormatError(f"{problem} has an absurd shape", found=shape)
    return TensorEntry(dtype, tuple(shape), data_start + offsets[0], data_start + offsets[1])


def _are_counts(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a file, on the CPU, after validation; raises `FormatError`."""
    return parse_tensors(path.read_bytes(), path.name)


def parse_tensors(data: bytes, what: str) -> dict[str, Tensor]:
    """Every tensor of a file in memory, on the CPU, after validation; raises `FormatError`."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    parse_header(data, what)
    try:
        return load(data)
    except (SafetensorError, ValueError, RuntimeError, json.JSONDecodeError) as error:
        raise FormatError(f"{what} cannot be read as safetensors", found=str(error)) from error


def tensor_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """The file's bytes. The same tensors give the same bytes, whatever the order of the mapping."""
    import torch
    from safetensors.torch import save

    # Copies, since the library refuses tensors that share memory.
    copies = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }
    return save(dict(sorted(copies.items())))


def require_finite(name: str, tensor: Tensor, error: type[FormatError]) -> None:
    """Raises `error` where a floating tensor holds NaN or infinity."""
    import torch

    if tensor.is_floating_point() and not bool(torch.isfinite(tensor if tensor.itemsize > 1 else tensor.float()).all()):
        raise error(f"{name!r} holds values that are not finite", fix="train again with a smaller learning rate")
