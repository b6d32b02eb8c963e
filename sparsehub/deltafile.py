"""The layout of delta.safetensors and its validation. The rules are in docs/format.md.

numpy alone: a package can be validated, published and fetched where torch is not loaded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsehub.delta_format import BLOCK, DELTA_FILE, SCALE_GROUP, STORED_DTYPES, VALUE_KINDS
from sparsehub.errors import DeltaError
from sparsehub.tensorfile import Header, not_finite_at, parse_header, stored_array

__all__ = [
    "BLOCK",
    "DELTA_FILE",
    "SCALE_GROUP",
    "STORED_DTYPES",
    "VALUE_KINDS",
    "DeltaFileLayout",
    "StoredDelta",
    "check_kinds",
    "group_sizes",
    "validate_delta",
]


@dataclass(frozen=True)
class DeltaFileLayout:
    """How the parameters of a delta follow each other in its file."""

    names: tuple[str, ...]  # sorted
    blocks: NDArray[np.int64]  # [parameters] blocks of 65,536 entries that each has
    last_size: NDArray[np.int64]  # [parameters] entries of its last block


@dataclass(frozen=True)
class StoredDelta:
    """The arrays of a validated file; views of its bytes."""

    layout: DeltaFileLayout
    indices: NDArray[np.uint16]  # [n] offsets inside their blocks
    counts: NDArray[np.int32]  # [blocks] entries of each block
    values: NDArray[Any]  # [n] as stored; bfloat16 as its bits in uint16
    scales: NDArray[np.float32] | None  # [groups] for int8; else None
    nnz: NDArray[np.int64]  # [parameters] entries of each parameter

    def positions(self) -> NDArray[np.int64]:
        """[n] the flat position of each entry inside its parameter."""
        starts = np.concatenate([np.arange(n, dtype=np.int64) * BLOCK for n in self.layout.blocks])
        positions = np.repeat(starts, self.counts)
        positions += self.indices
        return positions

    def products(self) -> NDArray[np.float32]:
        """[n] int8 values times their scales."""
        assert self.scales is not None, "only int8 values have scales"
        products = np.repeat(self.scales, group_sizes(self.nnz))
        products *= self.values
        return products

    def floats(self) -> NDArray[np.float32]:
        """[n] the values as numbers, whatever they are stored as."""
        if self.scales is not None:
            return self.products()
        if self.values.dtype == np.uint16:  # bfloat16 is the upper half of a float32
            return (self.values.astype(np.uint32) << 16).view(np.float32)
        return self.values.astype(np.float32)


def check_kinds(value_kind: str, value_dtype: str) -> None:
    """Raises `DeltaError` for a kind or dtype of values that the format does not know."""
    if value_kind not in VALUE_KINDS:
        raise DeltaError("unknown value kind", found=value_kind, expected=" or ".join(VALUE_KINDS))
    if value_dtype not in STORED_DTYPES:
        raise DeltaError("unknown value dtype", found=value_dtype, expected=", ".join(STORED_DTYPES))
    if value_kind == "set" and value_dtype == "int8":
        raise DeltaError("`set` values are exact and cannot be int8", fix="store them in the checkpoint's dtype")


def group_sizes(nnz: NDArray[np.int64]) -> NDArray[np.int64]:
    """Entries of each scale's group: 256, fewer at the end of a parameter. nnz: [parameters]."""
    groups = -(-nnz // SCALE_GROUP)
    sizes = np.full(int(groups.sum()), SCALE_GROUP, dtype=np.int64)
    sizes[np.cumsum(groups) - 1] = nnz - (groups - 1) * SCALE_GROUP
    return sizes


def validate_delta(data: bytes, shapes: Mapping[str, tuple[int, ...]], value_dtype: str) -> StoredDelta:
    """Validate the bytes of a file against sections 4 and 5 of the format; raises `FormatError`.

    shapes: of the whole parameters, as the manifest states them. Needs no more memory than half of `data`.
    """
    check_kinds("add", value_dtype)
    if not shapes:
        raise DeltaError("the delta changes nothing", expected="at least one parameter with one entry")
    header = parse_header(data, DELTA_FILE)
    numels = {name: math.prod(shape) for name, shape in sorted(shapes.items())}
    n = _check_tensors(header, numels, value_dtype)
    stored = {name: stored_array(data, entry) for name, entry in header.entries.items()}
    sizes = np.array([1 + (numel - 1) % BLOCK for numel in numels.values()], dtype=np.int64)
    layout = DeltaFileLayout(tuple(numels), np.array([-(-m // BLOCK) for m in numels.values()], dtype=np.int64), sizes)
    nnz = _check_counts(layout, stored["counts"], n)
    delta = StoredDelta(layout, stored["indices"], stored["counts"], stored["values"], stored.get("scales"), nnz)
    _check_indices(delta)
    _check_values(delta, value_dtype)
    return delta


def _check_tensors(header: Header, numels: Mapping[str, int], value_dtype: str) -> int:
    """The number of entries; raises unless the file holds what it must, in the right dtypes and lengths."""
    expected = {"indices", "counts", "values", *(["scales"] if value_dtype == "int8" else [])}
    if set(header.entries) != expected:
        raise DeltaError(
            f"{DELTA_FILE} does not hold the tensors of a delta",
            found=", ".join(sorted(header.entries))[:200] or "none",
            expected=", ".join(sorted(expected)),
        )
    for name, numel in numels.items():
        if numel < 1:
            raise DeltaError(f"{name!r} is a parameter without entries", found=numel)
    shape = header.entries["indices"].shape
    n = shape[0] if len(shape) == 1 else 0
    if not n:
        raise DeltaError("the delta changes nothing", found=f"indices of shape {shape}", expected="one entry at least")
    blocks = sum(-(-numel // BLOCK) for numel in numels.values())
    wanted = {"indices": ("U16", (n,)), "counts": ("I32", (blocks,)), "values": (STORED_DTYPES[value_dtype], (n,))}
    for name, found in ((name, header.entries[name]) for name in wanted):
        if (found.dtype, found.shape) != wanted[name]:
            raise DeltaError(
                f"{name!r} of {DELTA_FILE} has the wrong type or length",
                found=f"{found.dtype} {list(found.shape)}",
                expected=f"{wanted[name][0]} {list(wanted[name][1])}",
            )
    return n


def _check_counts(layout: DeltaFileLayout, counts: NDArray[np.int32], n: int) -> NDArray[np.int64]:
    """The entries of each parameter."""
    if bool((counts < 0).any()) or int(counts.sum(dtype=np.int64)) != n:
        raise DeltaError(
            "the counts of the blocks and the number of indices disagree",
            found=f"counts of {int(counts.min())} to {int(counts.max())} in all {int(counts.sum(dtype=np.int64))}",
            expected=f"counts of 0 or more, in all {n}",
        )
    starts = np.cumsum(layout.blocks) - layout.blocks
    nnz = np.add.reduceat(counts, starts, dtype=np.int64)
    if not bool(nnz.all()):
        raise DeltaError(f"{layout.names[int(np.argmin(nnz))]!r} has no entries", fix="leave the parameter out")
    return nnz


def _check_indices(delta: StoredDelta) -> None:
    """Strictly increasing inside each block, and in range in the last block of each parameter."""
    borders = np.cumsum(delta.counts, dtype=np.int64)
    falling = delta.indices[1:] <= delta.indices[:-1]
    falling[borders[(borders > 0) & (borders < len(delta.indices))] - 1] = False
    ends = np.cumsum(delta.nnz)
    if bool(falling.any()):
        place = int(np.argmax(falling)) + 1
        raise DeltaError(
            f"{_owner(delta, place)!r}: indices are not strictly increasing", found=f"entry {place} of the file"
        )
    used = delta.counts[np.cumsum(delta.layout.blocks) - 1] > 0
    outside = used & (delta.indices[ends - 1] >= delta.layout.last_size)
    if bool(outside.any()):
        place = int(np.argmax(outside))
        raise DeltaError(
            f"{delta.layout.names[place]!r}: an index is out of range",
            found=f"offset {int(delta.indices[ends[place] - 1])} in the last block",
            expected=f"at most {int(delta.layout.last_size[place]) - 1}",
        )


def _owner(delta: StoredDelta, place: int) -> str:
    """The parameter that an entry of the file belongs to."""
    return delta.layout.names[int(np.searchsorted(np.cumsum(delta.nnz), place, side="right"))]


def _check_values(delta: StoredDelta, value_dtype: str) -> None:
    if value_dtype == "int8":
        _check_int8(delta)
    elif (place := not_finite_at(delta.values, STORED_DTYPES[value_dtype])) is not None:
        raise DeltaError(
            f"{_owner(delta, place)!r} holds values that are not finite", found=f"entry {place} of the file"
        )


def _check_int8(delta: StoredDelta) -> None:
    scales, sizes = delta.scales, group_sizes(delta.nnz)
    if scales is None or scales.dtype != np.float32 or scales.shape != sizes.shape:
        raise DeltaError(
            "scales of the wrong type or number",
            found=None if scales is None else f"{scales.dtype} {list(scales.shape)}",
            expected=f"one float32 for each 256 values of a parameter: {len(sizes)}",
        )
    if bool((delta.values == -128).any()):
        raise DeltaError("an int8 value of -128", expected="-127 to 127")
    if not_finite_at(scales, "F32") is not None:
        raise DeltaError("a scale is not finite")
    if bool((scales < 0).any()):
        raise DeltaError("a negative scale", found=float(scales.min()))
    largest = np.maximum.reduceat(np.abs(delta.values), np.cumsum(sizes) - sizes).astype(np.float32)
    with np.errstate(over="ignore"):
        if not bool(np.isfinite(largest * scales).all()):
            raise DeltaError("an int8 value times its scale is not finite")
