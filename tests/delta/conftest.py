from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsehub.delta import Delta, ParameterDelta
from sparsehub.tensorfile import tensor_bytes

WriteTensors = Callable[..., Path]


@pytest.fixture
def small_delta() -> Delta:
    """Two parameters, the first of three blocks."""
    return Delta(
        {
            "w": ParameterDelta(
                (3, 50_000), torch.tensor([0, 65_535, 65_536, 149_999]), torch.tensor([0.5, -1, 2, 4.0])
            ),
            "b": ParameterDelta((4,), torch.tensor([2]), torch.tensor([-0.25])),
        }
    )


@pytest.fixture
def small_tensors() -> dict[str, torch.Tensor]:
    """What the file of `small_delta` holds, to be spoilt."""
    return {
        "indices": torch.tensor([2, 0, 65_535, 0, 18_927], dtype=torch.uint16),
        "counts": torch.tensor([1, 2, 1, 1], dtype=torch.int32),
        "values": torch.tensor([-0.25, 0.5, -1, 2, 4.0], dtype=torch.float16),
    }


@pytest.fixture
def write_tensors(tmp_path: Path) -> WriteTensors:
    """Write any tensors as delta.safetensors."""

    def write(tensors: Mapping[str, torch.Tensor]) -> Path:
        path = tmp_path / "delta.safetensors"
        path.write_bytes(tensor_bytes(tensors))
        return path

    return write


@pytest.fixture
def write_raw(tmp_path: Path) -> WriteTensors:
    """Write any header and data as delta.safetensors."""

    def write(header: Any, data: bytes = b"") -> Path:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        path = tmp_path / "delta.safetensors"
        path.write_bytes(struct.pack("<Q", len(text)) + text + data)
        return path

    return write
