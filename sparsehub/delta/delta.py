"""A delta in memory: per parameter, which entries change and by how much."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsehub.deltafile import check_kinds
from sparsehub.errors import DeltaError
from sparsehub.tensorfile import require_finite

value_dtypes: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int8": torch.int8,
}


@dataclass(frozen=True)
class ParameterDelta:
    """The changed entries of one parameter."""

    shape: tuple[int, ...]  # of the whole parameter
    indices: Tensor  # [n] int64, flat, strictly increasing
    values: Tensor  # [n] floating

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Delta:
    """What a task changes in its backbone: made by training and `extract`, stored in a package, applied as a patch."""

    parameters: Mapping[str, ParameterDelta]
    value_kind: str = "add"  # `add`: W = W0 + value; `set`: W = value
    # How values are stored on disk; with `int8`, `values` are already the float32 products of integer and scale.
    value_dtype: str = "float16"

    @property
    def nnz(self) -> int:
        return sum(len(part.indices) for part in self.parameters.values())


def check_delta(delta: Delta) -> None:
    """Validate what the types cannot say; raises `DeltaError` and names the parameter."""
    check_kinds(delta.value_kind, delta.value_dtype)
    if not delta.parameters:
        raise DeltaError("the delta changes nothing", expected="at least one parameter with one entry")
    for name, part in delta.parameters.items():
        _check_part(name, part)


def _check_part(name: str, part: ParameterDelta) -> None:
    if part.indices.dtype != torch.int64 or part.indices.ndim != 1 or part.values.shape != part.indices.shape:
        raise DeltaError(
            f"{name!r}: indices and values do not fit together",
            found=f"{tuple(part.indices.shape)} {part.indices.dtype}, {tuple(part.values.shape)}",
            expected="two flat tensors of one length, indices in int64",
        )
    if not len(part.indices):
        raise DeltaError(f"{name!r} has no entries", fix="leave the parameter out")
    if bool((part.indices[1:] <= part.indices[:-1]).any()):
        raise DeltaError(f"{name!r}: indices are not strictly increasing")
    if int(part.indices[0]) < 0 or int(part.indices[-1]) >= part.numel:
        raise DeltaError(
            f"{name!r}: an index is out of range",
            found=f"{int(part.indices[0])}..{int(part.indices[-1])}",
            expected=f"0..{part.numel - 1}",
        )
    require_finite(name, part.values, DeltaError)
