"""delta.safetensors: 16 bits an index, whatever the parameter's size. The rules are in docs/format.md."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from sparsehub.delta.delta import Delta, ParameterDelta, check_delta, value_dtypes
from sparsehub.errors import DeltaError
from sparsehub.tensorfile import load_tensors, require_finite, tensor_bytes

DELTA_FILE = "delta.safetensors"
BLOCK = 65_536
SCALE_GROUP = 256


def encode_indices(indices: Tensor, numel: int) -> tuple[Tensor, Tensor]:
    """Flat positions [n] int64 to offsets [n] uint16 and block boundaries [ceil(numel / 65536) + 1] int32."""
    blocks = -(-numel // BLOCK)
    edges = torch.arange(blocks + 1, dtype=torch.int64) * BLOCK
    boundaries = torch.searchsorted(indices, edges).to(torch.int32)
    return (indices % BLOCK).to(torch.uint16), boundaries


def decode_indices(offsets: Tensor, boundaries: Tensor, numel: int, name: str) -> Tensor:
    """The inverse of `encode_indices`; raises `DeltaError` unless the result is strictly increasing and in range."""
    blocks = -(-numel // BLOCK)
    if boundaries.dtype != torch.int32 or boundaries.shape != (blocks + 1,) or offsets.dtype != torch.uint16:
        raise DeltaError(f"{name!r}: the index tensors have the wrong type or length")
    counts = boundaries[1:].long() - boundaries[:-1].long()
    if int(boundaries[0]) != 0 or int(boundaries[-1]) != offsets.numel() or bool((counts < 0).any()):
        raise DeltaError(f"{name!r}: block boundaries and the number of indices disagree")
    starts = torch.repeat_interleave(torch.arange(blocks, dtype=torch.int64) * BLOCK, counts)
    return starts + offsets.to(torch.int64)


def quantise(values: Tensor) -> tuple[Tensor, Tensor]:
    """values [n] to int8 [n] and one float32 scale per 256 values: value = integer * scale."""
    padded = torch.nn.functional.pad(values.float(), (0, -len(values) % SCALE_GROUP)).view(-1, SCALE_GROUP)
    scales = padded.abs().amax(dim=1) / 127
    steps = torch.where(scales > 0, scales, torch.ones_like(scales))
    integers = (padded / steps[:, None]).round().clamp(-127, 127).to(torch.int8)
    return integers.flatten()[: len(values)], scales


def dequantise(integers: Tensor, scales: Tensor) -> Tensor:
    """int8 [n] and scales [ceil(n / 256)] to float32 [n]."""
    return integers.float() * scales.repeat_interleave(SCALE_GROUP)[: len(integers)]


def delta_bytes(delta: Delta) -> bytes:
    """The bytes of delta.safetensors; raises `DeltaError` for a delta that could not be read back."""
    check_delta(delta)
    tensors: dict[str, Tensor] = {}
    for name, part in delta.parameters.items():
        tensors[f"{name}.indices"], tensors[f"{name}.blocks"] = encode_indices(part.indices, part.numel)
        if delta.value_dtype == "int8":
            tensors[f"{name}.values"], tensors[f"{name}.scales"] = quantise(part.values)
            require_finite(f"{name}.scales", tensors[f"{name}.scales"], DeltaError)
        else:
            stored = part.values.to(value_dtypes[delta.value_dtype])
            require_finite(f"{name} as {delta.value_dtype}", stored, DeltaError)
            tensors[f"{name}.values"] = stored
    return tensor_bytes(tensors)


def read_delta(path: Path, shapes: Mapping[str, tuple[int, ...]], value_kind: str, value_dtype: str) -> Delta:
    """Read and prove a delta. `shapes` gives the whole parameters' shapes, as the manifest states them."""
    tensors = load_tensors(path)
    suffixes = ["indices", "blocks", "values", *(["scales"] if value_dtype == "int8" else [])]
    expected = {f"{name}.{suffix}" for name in shapes for suffix in suffixes}
    if set(tensors) != expected:
        raise DeltaError(
            f"{path.name} does not hold the tensors that the manifest names",
            found=", ".join(sorted(set(tensors) - expected)[:3]) or "fewer tensors",
            expected=", ".join(sorted(expected - set(tensors))[:3]) or "no others",
        )
    parts = {name: _read_part(name, shape, tensors, value_dtype) for name, shape in shapes.items()}
    delta = Delta(parts, value_kind, value_dtype)
    check_delta(delta)
    return delta


def _read_part(name: str, shape: tuple[int, ...], tensors: Mapping[str, Tensor], value_dtype: str) -> ParameterDelta:
    part = ParameterDelta(shape, torch.empty(0, dtype=torch.int64), torch.empty(0))
    offsets, values = tensors[f"{name}.indices"], tensors[f"{name}.values"]
    if offsets.ndim != 1 or values.ndim != 1 or values.dtype != value_dtypes.get(value_dtype):
        raise DeltaError(f"{name!r}: values of the wrong type", found=values.dtype, expected=f"flat {value_dtype}")
    if value_dtype == "int8":
        values = _read_int8(name, values, tensors[f"{name}.scales"])
    return ParameterDelta(shape, decode_indices(offsets, tensors[f"{name}.blocks"], part.numel, name), values)


def _read_int8(name: str, integers: Tensor, scales: Tensor) -> Tensor:
    if scales.dtype != torch.float32 or scales.shape != (-(-len(integers) // SCALE_GROUP),):
        raise DeltaError(f"{name!r}: scales of the wrong type or number", expected="one float32 per 256 values")
    if bool((integers == -128).any()) or bool((scales < 0).any()):
        raise DeltaError(f"{name!r}: an integer of -128 or a negative scale")
    require_finite(f"{name}.scales", scales, DeltaError)
    return dequantise(integers, scales)
