"""From a delta to the bytes of delta.safetensors and back. The rules are in docs/format.md."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sparsehub.delta.delta import Delta, ParameterDelta, check_delta, value_dtypes
from sparsehub.deltafile import BLOCK, DELTA_FILE, SCALE_GROUP, StoredDelta, check_kinds, validate_delta
from sparsehub.errors import DeltaError
from sparsehub.tensorfile import require_finite, tensor_bytes

__all__ = ["DELTA_FILE", "delta_bytes", "encode_indices", "parse_delta", "quantise", "read_delta"]


def encode_indices(indices: Tensor, numel: int) -> tuple[Tensor, Tensor]:
    """Flat positions [n] int64 to offsets [n] uint16 and entries of each block [ceil(numel / 65536)] int32."""
    edges = torch.arange(-(-numel // BLOCK) + 1, dtype=torch.int64) * BLOCK
    return (indices % BLOCK).to(torch.uint16), torch.searchsorted(indices, edges).diff().to(torch.int32)


def quantise(values: Tensor) -> tuple[Tensor, Tensor]:
    """values [n] to int8 [n] and one float32 scale per 256 values: value = integer * scale."""
    padded = torch.nn.functional.pad(values.float(), (0, -len(values) % SCALE_GROUP)).view(-1, SCALE_GROUP)
    scales = padded.abs().amax(dim=1) / 127
    steps = torch.where(scales > 0, scales, torch.ones_like(scales))
    integers = (padded / steps[:, None]).round().clamp(-127, 127).to(torch.int8)
    return integers.flatten()[: len(values)], scales


def delta_bytes(delta: Delta) -> bytes:
    """The bytes of delta.safetensors; raises `DeltaError` for a delta that could not be read back."""
    check_delta(delta)
    parts = [delta.parameters[name] for name in sorted(delta.parameters)]
    indices, counts = zip(*(encode_indices(part.indices, part.numel) for part in parts), strict=True)
    tensors = {"indices": torch.cat(indices), "counts": torch.cat(counts)}
    if delta.value_dtype == "int8":
        values, scales = zip(*(quantise(part.values) for part in parts), strict=True)
        tensors |= {"values": torch.cat(values), "scales": torch.cat(scales)}
        require_finite("scales", tensors["scales"], DeltaError)
    else:
        tensors["values"] = torch.cat([_cast(name, delta) for name in sorted(delta.parameters)])
    return tensor_bytes(tensors)


def _cast(name: str, delta: Delta) -> Tensor:
    values = delta.parameters[name].values.to(value_dtypes[delta.value_dtype])
    require_finite(f"{name} as {delta.value_dtype}", values, DeltaError)
    return values


def read_delta(path: Path, shapes: Mapping[str, tuple[int, ...]], value_kind: str, value_dtype: str) -> Delta:
    """Read and validate a delta; raises `FormatError`. shapes: of the whole parameters, as the manifest states them."""
    return parse_delta(path.read_bytes(), shapes, value_kind, value_dtype)


def parse_delta(data: bytes, shapes: Mapping[str, tuple[int, ...]], value_kind: str, value_dtype: str) -> Delta:
    """The delta in the bytes of a file, validated; raises `FormatError`. It keeps no reference to `data`."""
    check_kinds(value_kind, value_dtype)
    stored = validate_delta(data, shapes, value_dtype)
    positions, values = torch.from_numpy(stored.positions()), _values(stored, value_dtype)
    borders = [0, *np.cumsum(stored.nnz).tolist()]
    parts = {
        name: ParameterDelta(shapes[name], positions[start:stop], values[start:stop])
        for name, (start, stop) in zip(stored.layout.names, pairwise(borders), strict=True)
    }
    return Delta(parts, value_kind, value_dtype)


def _values(stored: StoredDelta, value_dtype: str) -> Tensor:
    if value_dtype == "int8":
        return torch.from_numpy(stored.products())
    return torch.from_numpy(stored.values.copy()).view(value_dtypes[value_dtype])
